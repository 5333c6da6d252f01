//! Page walks: four levels, pages of 4 KiB, 2 MiB and 1 GiB (Intel SDM volume 3, chapter 4).
//!
//! The tables are guest data that may change during the walk: each entry is copied once and only
//! the copy is used. The worst a hostile table can do is to map the guest's own RAM in odd ways.

use super::{
    cpu::{Cpu, Exception, Exit},
    tlb::Domain,
};
use crate::{
    flows::{Flow, Reject},
    tlfs::cpuid::PHYSICAL_BITS,
};

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = ((1 << PHYSICAL_BITS) - 1) & !0xFFF;
/// Physical address bits beyond the width: reserved in every entry.
const BEYOND: u64 = ((1 << 52) - 1) & !((1 << PHYSICAL_BITS) - 1);

pub const CR0_WP: u64 = 1 << 16;
pub const CR0_PG: u64 = 1 << 31;
pub const CR4_PGE: u64 = 1 << 7;
pub const CR4_SMEP: u64 = 1 << 20;
pub const CR4_SMAP: u64 = 1 << 21;
pub const EFER_NXE: u64 = 1 << 11;

/// Bits of a page fault's error code.
pub mod error {
    pub const PROTECTION: u32 = 1 << 0;
    pub const WRITE: u32 = 1 << 1;
    pub const USER: u32 = 1 << 2;
    pub const RESERVED: u32 = 1 << 3;
    pub const FETCH: u32 = 1 << 4;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    Execute,
}

/// Where a linear page lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Guest physical address of the 4 KiB page.
    pub gpa: u64,
    /// Stays valid when CR3 is written.
    pub global: bool,
    /// Shift of the size of the page that maps it: 12, 21 or 30.
    pub shift: u32,
}

pub fn is_canonical(linear: u64) -> bool {
    ((linear as i64) << 16 >> 16) as u64 == linear
}

impl Cpu {
    /// Translates a canonical linear address, checks that `domain` may do `access` there, and sets
    /// the accessed and dirty bits. Raises #PF otherwise.
    pub fn walk(&mut self, linear: u64, access: Access, domain: Domain) -> Result<Page, Exit> {
        let page = self.walk_tables(linear, access, domain);
        match page {
            Ok(page) => {
                let levels = u64::from(48 - page.shift) / 9;
                self.tally.accept(Flow::PageTableWalk, levels * 8);
            }
            Err(_) => self.tally.reject(match self.exception.error.unwrap_or(0) {
                code if code & error::RESERVED != 0 => Reject::PageTableWalkReserved,
                code if code & error::PROTECTION != 0 => Reject::PageTableWalkForbidden,
                _ => Reject::PageTableWalkAbsent,
            }),
        }
        page
    }

    fn walk_tables(&mut self, linear: u64, access: Access, domain: Domain) -> Result<Page, Exit> {
        if self.cr0 & CR0_PG == 0 {
            return Ok(Page {
                gpa: linear & ADDRESS,
                global: true,
                shift: 12,
            });
        }
        let by_user = domain == Domain::User;
        let no_execute = self.efer & EFER_NXE != 0;
        let mut code = 0;
        if access == Access::Write {
            code |= error::WRITE;
        }
        if by_user {
            code |= error::USER;
        }
        if access == Access::Execute && (no_execute || self.cr4 & CR4_SMEP != 0) {
            code |= error::FETCH;
        }
        let reserved = BEYOND | if no_execute { 0 } else { NO_EXECUTE };

        // Rights are what all levels grant together.
        let mut rights = WRITABLE | USER;
        let mut forbids_execution = false;
        let mut table = self.cr3 & ADDRESS;
        let mut shift = 39;
        let mut path = [(0u64, 0u64); 4];
        let mut depth = 0;
        let leaf = loop {
            let place = table + ((linear >> shift) & 0x1FF) * 8;
            // A table in a hole reads as all ones, which the reserved bits refuse.
            let offset = self.memory.offset(place);
            let entry = offset
                .and_then(|offset| self.memory.peek(offset))
                .unwrap_or(u64::MAX);
            if entry & PRESENT == 0 {
                return self.raise(Exception::page_fault(linear, code));
            }
            let is_leaf = shift == 12 || (entry & LARGE != 0 && shift <= 30);
            let mut forbidden = reserved;
            if shift == 39 {
                forbidden |= LARGE;
            } else if is_leaf && shift > 12 {
                // Between the PAT bit (12) and the page's own address bits.
                forbidden |= ((1 << shift) - 1) & !0x1FFF;
            }
            if entry & forbidden != 0 {
                let code = code | error::PROTECTION | error::RESERVED;
                return self.raise(Exception::page_fault(linear, code));
            }
            rights &= entry;
            forbids_execution |= entry & NO_EXECUTE != 0;
            path[depth & 3] = (offset.unwrap_or(u64::MAX), entry);
            depth += 1;
            if is_leaf {
                break entry;
            }
            table = entry & ADDRESS;
            shift -= 9;
        };

        let user_page = rights & USER != 0;
        let allowed = if by_user {
            user_page
                && match access {
                    Access::Read => true,
                    Access::Write => rights & WRITABLE != 0,
                    Access::Execute => !forbids_execution,
                }
        } else {
            match access {
                Access::Execute if user_page && self.cr4 & CR4_SMEP != 0 => false,
                Access::Execute => !forbids_execution,
                // Supervisor mode access prevention.
                _ if user_page && domain == Domain::Kernel && self.cr4 & CR4_SMAP != 0 => false,
                Access::Read => true,
                Access::Write => rights & WRITABLE != 0 || self.cr0 & CR0_WP == 0,
            }
        };
        if !allowed {
            return self.raise(Exception::page_fault(linear, code | error::PROTECTION));
        }

        for (level, &(offset, entry)) in path.iter().take(depth).enumerate() {
            let mut marked = entry | ACCESSED;
            if level + 1 == depth && access == Access::Write {
                marked |= DIRTY;
            }
            if marked != entry {
                self.memory.touch(offset);
                let _ = self.memory.write(offset, marked);
            }
        }
        let within = (1u64 << shift) - 1;
        Ok(Page {
            gpa: (leaf & ADDRESS & !within) | (linear & within & !0xFFF),
            global: leaf & GLOBAL != 0 && self.cr4 & CR4_PGE != 0,
            shift,
        })
    }
}
