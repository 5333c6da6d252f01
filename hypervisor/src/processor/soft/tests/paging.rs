//! Page walks: permissions, accessed and dirty bits, what flushes keep and drop.

use super::{
    super::{cpu::Exit, flags},
    *,
};
use crate::tlfs::cpuid::PHYSICAL_BITS;
use iced_x86::code_asm::*;

const WP: u64 = 1 << 16;
const SMEP: u64 = 1 << 20;
const SMAP: u64 = 1 << 21;
const PGE: u64 = 1 << 7;

#[derive(Clone, Copy)]
enum Do {
    Read,
    Write,
    Fetch,
}
use Do::{Fetch, Read, Write};

/// The error code of one access to a page mapped by `entry`; `None` when it succeeds.
fn attempt(action: Do, user: bool, entry: u64, wp: u64, features: u64, rflags: u64) -> Option<u32> {
    let mut guest = Guest::new(|a| a.nop().unwrap());
    guest.map(DATA, DATA | entry);
    let cpu = guest.cpu_mut();
    cpu.cr0 = cpu.cr0 & !WP | wp;
    cpu.cr4 |= features;
    cpu.system_flags |= rflags;
    if user {
        cpu.cpl = 3;
    }
    cpu.update_domain();
    let result = match action {
        Read => cpu.load::<u32>(DATA).map(|_| ()),
        Write => cpu.store::<u32>(DATA, 1),
        Fetch => cpu.translate_fetch(DATA).map(|_| ()),
    };
    match result {
        Ok(()) => None,
        Err(exit) => {
            assert_eq!(exit, Exit::Exception);
            assert_eq!((cpu.exception.vector, cpu.exception.address), (14, DATA));
            cpu.exception.error
        }
    }
}

#[test]
fn permissions() {
    const AC: u64 = flags::AC;
    // Access, by a user, entry, CR0, CR4, RFLAGS, error code.
    let cases = [
        (Read, false, P, 0, 0, 0, None),
        (Read, false, 0, 0, 0, 0, Some(0)),
        (Write, false, 0, 0, 0, 0, Some(2)),
        (Fetch, false, 0, 0, 0, 0, Some(16)),
        (Write, false, P, 0, 0, 0, None),
        (Write, false, P, WP, 0, 0, Some(3)),
        (Write, false, P | W, WP, 0, 0, None),
        (Read, true, P | W, 0, 0, 0, Some(5)),
        (Read, true, P | U, 0, 0, 0, None),
        (Write, true, P | U, 0, 0, 0, Some(7)),
        (Write, true, P | W | U, WP, 0, 0, None),
        (Fetch, true, P | U, 0, 0, 0, None),
        (Fetch, true, P | U | NX, 0, 0, 0, Some(0x15)),
        (Read, true, P | U | NX, 0, 0, 0, None),
        (Fetch, false, P | NX, 0, 0, 0, Some(0x11)),
        (Fetch, false, P | U, 0, 0, 0, None),
        (Fetch, false, P | U, 0, SMEP, 0, Some(0x11)),
        (Fetch, true, P | U, 0, SMEP, 0, None),
        (Read, false, P | U, 0, SMAP, 0, Some(1)),
        (Write, false, P | W | U, 0, SMAP, 0, Some(3)),
        (Read, false, P | U, 0, SMAP, AC, None),
        (Write, false, P | U, WP, SMAP, AC, Some(3)),
        (Read, true, P | U, 0, SMAP, 0, None),
        (Fetch, false, P | U, 0, SMAP, 0, None),
        (Read, false, P | 1 << PHYSICAL_BITS, 0, 0, 0, Some(9)),
        (Read, true, P | U | 1 << 51, 0, 0, 0, Some(13)),
    ];
    for (i, (action, user, entry, wp, features, rflags, expected)) in cases.into_iter().enumerate()
    {
        let got = attempt(action, user, entry, wp, features, rflags);
        assert_eq!(got, expected, "case {i}");
    }
}

#[test]
fn no_execute_is_reserved_until_it_is_enabled() {
    let mut guest = Guest::new(|a| a.nop().unwrap());
    guest.map(DATA, DATA | P | NX);
    guest.cpu_mut().efer &= !0x800;
    assert!(guest.cpu_mut().load::<u8>(DATA).is_err());
    assert_eq!(guest.cpu().exception.error, Some(9));
}

#[test]
fn accessed_and_dirty_bits_are_set_when_they_must() {
    let mut guest = Guest::new(|a| a.nop().unwrap());
    let entry = PT + (DATA >> 12) * 8;
    guest.cpu_mut().load::<u8>(DATA).unwrap();
    assert_eq!(guest.word(entry) & (A | D), A);
    assert_eq!(guest.word(PML4) & (A | D), A);
    guest.cpu_mut().store::<u8>(DATA, 1).unwrap();
    assert_eq!(guest.word(entry) & (A | D), A | D);
    assert_eq!(guest.word(PD) & (A | D), A);
    // A refused access marks nothing.
    guest.map(DATA, DATA | P);
    assert!(guest.as_user().cpu_mut().store::<u8>(DATA, 1).is_err());
    assert_eq!(guest.word(entry) & (A | D), 0);
    // Large pages have theirs in the directory.
    guest.cpu_mut().store::<u8>(2 << 20, 1).unwrap();
    assert_eq!(guest.word(PD + 8) & (A | D), A | D);
}

#[test]
fn large_pages_map_with_their_offset() {
    let mut guest = Guest::new(|a| a.nop().unwrap());
    guest.cpu_mut().store(0x0032_1458, 0x77_u64).unwrap();
    assert_eq!(guest.word(0x0032_1458), 0x77);
    // One GiB at 1 GiB, back to physical 0.
    guest.put(PDPT + 8, PS | P | W);
    assert_eq!(guest.cpu_mut().load::<u64>(0x4032_1458).unwrap(), 0x77);
    // Address bits below the page's size are reserved.
    guest.put(PDPT + 16, PS | P | 0x2000);
    assert!(guest.cpu_mut().load::<u64>(0x8000_0000).is_err());
    assert_eq!(guest.cpu().exception.error, Some(9));
}

#[test]
fn accesses_across_pages_are_all_or_nothing() {
    let mut guest = Guest::new(|a| a.nop().unwrap());
    let edge = DATA + 0xFFC;
    guest
        .cpu_mut()
        .store(edge, 0x1122_3344_5566_7788_u64)
        .unwrap();
    assert_eq!(
        guest.cpu_mut().load::<u64>(edge).unwrap(),
        0x1122_3344_5566_7788
    );
    guest.map(DATA + 0x1000, 0);
    assert!(guest.cpu_mut().store(edge, 0_u64).is_err());
    assert_eq!(guest.cpu().exception.address, DATA + 0x1000);
    assert_eq!(guest.cpu_mut().load::<u32>(edge).unwrap(), 0x5566_7788);
    assert!(
        guest
            .cpu_mut()
            .store_bytes(DATA + 0xF00, &[0; 512])
            .is_err()
    );
    assert_eq!(guest.cpu_mut().load::<u32>(edge).unwrap(), 0x5566_7788);
}

#[test]
fn addresses_that_are_not_canonical_are_general_protection_faults() {
    let mut guest = Guest::new(|a| {
        a.mov(rbx, 0x8000_0000_0000_u64).unwrap();
        a.mov(rax, qword_ptr(rbx)).unwrap();
    });
    assert_eq!(guest.fault(), (13, 0));
}

#[test]
fn holes_read_ones_and_swallow_writes() {
    let mut guest = Guest::new(|a| a.nop().unwrap());
    guest.map(DATA, 0x1000_0000 | P | W);
    guest.cpu_mut().store(DATA, 0_u64).unwrap();
    assert_eq!(guest.cpu_mut().load::<u64>(DATA).unwrap(), u64::MAX);
    assert_eq!(guest.cpu_mut().page_span(DATA, false).unwrap(), None);
}

/// Loads through `address`, changes the entry behind the TLB's back, and loads again after `flush`.
fn stale(address: u64, entry: u64, flush: impl FnOnce(&mut CodeAssembler)) -> bool {
    let mut guest = Guest::new(|a| {
        a.mov(rbx, address).unwrap();
        a.mov(rax, qword_ptr(rbx)).unwrap();
        a.mov(rcx, PT + (DATA >> 12) * 8).unwrap();
        a.mov(rdx, (DATA + 0x1000) | P).unwrap();
        a.mov(qword_ptr(rcx), rdx).unwrap();
        flush(a);
        a.mov(rax, qword_ptr(rbx)).unwrap();
        a.hlt().unwrap();
    });
    guest.put(DATA, 1);
    guest.put(DATA + 0x1000, 2);
    guest.map(DATA, DATA | entry);
    guest.cpu_mut().cr4 |= PGE;
    guest.halt();
    guest.reg(Cpu::RAX) == 1
}

#[test]
fn translations_live_until_they_are_flushed() {
    let write_cr3 = |a: &mut CodeAssembler| {
        a.mov(rax, cr3).unwrap();
        a.mov(cr3, rax).unwrap();
    };
    assert!(stale(DATA, P, |_| {}));
    assert!(!stale(DATA, P, |a| a.invlpg(byte_ptr(rbx + 8)).unwrap()));
    assert!(stale(DATA, P, |a| a
        .invlpg(byte_ptr(rbx + 0x1000))
        .unwrap()));
    assert!(!stale(DATA, P, write_cr3));
    assert!(!stale(HIGH + DATA, P, write_cr3));
    // Global pages of the kernel half survive a change of the address space.
    assert!(stale(HIGH + DATA, P | G, write_cr3));
    assert!(!stale(HIGH + DATA, P | G, |a| a
        .invlpg(byte_ptr(rbx))
        .unwrap()));
    assert!(!stale(HIGH + DATA, P | G, |a| {
        a.mov(rax, cr4).unwrap();
        a.xor(eax, PGE as i32).unwrap();
        a.mov(cr4, rax).unwrap();
    }));
}

#[test]
fn generations_wrap_without_reviving_old_translations() {
    let mut guest = Guest::new(|a| a.nop().unwrap());
    guest.put(DATA, 1);
    guest.put(DATA + 0x1000, 2);
    for round in 0..5000 {
        let page = DATA + (round & 1) * 0x1000;
        guest.put(PT + (DATA >> 12) * 8, page | P);
        guest.cpu_mut().flush_address_space();
        assert_eq!(guest.cpu_mut().load::<u64>(DATA).unwrap(), 1 + (round & 1));
    }
}
