//! The local APIC in x2APIC mode: reached by MSRs 0x800-0x83F only, enabled from reset. There is
//! no MMIO window. Its timer counts the virtual machine's clock at 1 GHz over the divisor. (Intel SDM
//! volume 3, chapter 11.)

use crate::{
    clock::Clock,
    record::{Malformed, Record, check},
};

const ID: u32 = 0;
/// Version 0x14, highest LVT entry 6.
const VERSION: u64 = 0x14 | 6 << 16;

const SOFTWARE_ENABLE: u64 = 1 << 8;
const MASKED: u64 = 1 << 16;
const PERIODIC: u64 = 1 << 17;
const ESR_RECEIVE_ILLEGAL: u64 = 1 << 6;
const ESR_SEND_ILLEGAL: u64 = 1 << 5;

/// A set of the 256 vectors.
#[derive(Clone, Copy, Default)]
struct Vectors([u64; 4]);

impl Vectors {
    fn set(&mut self, vector: u8) {
        self.0[usize::from(vector >> 6)] |= 1 << (vector & 63);
    }
    fn clear(&mut self, vector: u8) {
        self.0[usize::from(vector >> 6)] &= !(1 << (vector & 63));
    }
    #[inline]
    fn highest(&self) -> Option<u8> {
        (0..4u8).rev().find_map(|word| {
            let bits = self.0[usize::from(word & 3)];
            (bits != 0).then(|| word << 6 | (63 - bits.leading_zeros() as u8))
        })
    }
    fn register(&self, index: u32) -> u64 {
        let word = self.0[(index >> 1) as usize & 3];
        (word >> ((index & 1) * 32)) & 0xFFFF_FFFF
    }
}

/// #GP: no such register, or reserved bits set.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused;

pub struct Apic {
    clock: Clock,
    requested: Vectors,
    in_service: Vectors,
    task_priority: u8,
    spurious: u64,
    errors: u64,
    errors_shown: u64,
    command: u64,
    /// CMCI, timer, thermal, performance, LINT0, LINT1, error.
    local: [u64; 7],
    divide: u64,
    initial: u64,
    /// When the running timer expires, in nanoseconds of the clock.
    deadline: Option<u64>,
}

const TIMER: usize = 1;
const ERROR: usize = 6;

impl Apic {
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            requested: Vectors::default(),
            in_service: Vectors::default(),
            task_priority: 0,
            spurious: 0xFF,
            errors: 0,
            errors_shown: 0,
            command: 0,
            local: [MASKED; 7],
            divide: 0,
            initial: 0,
            deadline: None,
        }
    }

    /// Saves or restores every register.
    pub fn state(&mut self, record: &mut Record) -> Result<(), Malformed> {
        record.fields([&mut self.requested.0, &mut self.in_service.0])?;
        record.field(&mut self.task_priority)?;
        record.fields([
            &mut self.spurious,
            &mut self.errors,
            &mut self.errors_shown,
            &mut self.command,
            &mut self.divide,
            &mut self.initial,
        ])?;
        record.field(&mut self.local)?;
        record.field(&mut self.deadline)?;
        check(self.initial >> 32 == 0, "the timer's count")?;
        check(self.requested.0[0] & 0xFFFF == 0, "an interrupt below 16")
    }

    /// Raises a fixed, edge-triggered interrupt.
    pub fn request(&mut self, vector: u8) {
        if vector < 16 {
            self.error(ESR_RECEIVE_ILLEGAL);
        } else if self.spurious & SOFTWARE_ENABLE != 0 {
            self.requested.set(vector);
        }
    }

    fn processor_priority(&self) -> u8 {
        let service = self.in_service.highest().unwrap_or(0);
        if self.task_priority >> 4 >= service >> 4 {
            self.task_priority
        } else {
            service & 0xF0
        }
    }

    /// The interrupt to deliver next, if its priority allows.
    #[inline]
    pub fn deliverable(&self) -> Option<u8> {
        let vector = self.requested.highest()?;
        (vector >> 4 > self.processor_priority() >> 4).then_some(vector)
    }

    /// Whether there is something to deliver, if need be after [`Apic::poll`].
    pub fn will_deliver(&self) -> bool {
        let entry = self.local[TIMER];
        let expired = self
            .deadline
            .is_some_and(|deadline| self.clock.now() >= deadline);
        self.deliverable().is_some()
            || (expired
                && entry & MASKED == 0
                && (entry as u8) >> 4 > self.processor_priority() >> 4)
    }

    /// The processor takes `vector`.
    pub fn acknowledge(&mut self, vector: u8) {
        self.requested.clear(vector);
        self.in_service.set(vector);
    }

    fn end_of_interrupt(&mut self) {
        if let Some(vector) = self.in_service.highest() {
            self.in_service.clear(vector);
        }
    }

    /// CR8: the upper four bits of the task priority.
    pub fn cr8(&self) -> u64 {
        u64::from(self.task_priority >> 4)
    }

    pub fn set_cr8(&mut self, value: u64) {
        self.task_priority = ((value & 0xF) << 4) as u8;
    }

    fn error(&mut self, bit: u64) {
        self.errors |= bit;
        let entry = self.local[ERROR];
        if entry & MASKED == 0 && entry & 0xFF >= 16 && self.spurious & SOFTWARE_ENABLE != 0 {
            self.requested.set(entry as u8);
        }
    }

    // Timer.

    fn period(&self) -> u64 {
        // Divide configuration 0-2 and 3: 2, 4 … 128, then 1.
        let code = (self.divide & 3) | (self.divide >> 1 & 4);
        self.initial << ((code + 1) & 7)
    }

    /// When the timer will expire, in nanoseconds of the clock.
    pub fn deadline(&self) -> Option<u64> {
        self.deadline
    }

    /// Lets the timer expire when its time has come.
    pub fn poll(&mut self) {
        let Some(deadline) = self.deadline else {
            return;
        };
        let now = self.clock.now();
        if now < deadline {
            return;
        }
        let entry = self.local[TIMER];
        let period = self.period();
        // Periods that were missed while the host did not run us are lost, as on a slow machine.
        self.deadline = (entry & PERIODIC != 0 && period > 0).then(|| {
            let missed = (now - deadline) / period;
            deadline.saturating_add(period.saturating_mul(missed + 1))
        });
        if entry & MASKED == 0 {
            self.request(entry as u8);
        }
    }

    fn arm(&mut self) {
        self.deadline = (self.initial != 0).then(|| self.clock.now().saturating_add(self.period()));
    }

    fn current_count(&self) -> u64 {
        let Some(deadline) = self.deadline else {
            return 0;
        };
        let left = deadline.saturating_sub(self.clock.now());
        (left.saturating_mul(self.initial) / self.period().max(1)).min(self.initial)
    }

    // Registers.

    fn local_index(msr: u32) -> Option<usize> {
        match msr {
            0x82F => Some(0),
            0x832..=0x837 => Some((msr - 0x831) as usize),
            _ => None,
        }
    }

    /// RDMSR of 0x800-0x83F.
    pub fn read(&mut self, msr: u32) -> Result<u64, Refused> {
        if let Some(entry) = Self::local_index(msr).and_then(|i| self.local.get(i)) {
            return Ok(*entry);
        }
        match msr {
            0x802 => Ok(u64::from(ID)),
            0x803 => Ok(VERSION),
            0x808 => Ok(u64::from(self.task_priority)),
            0x80A => Ok(u64::from(self.processor_priority())),
            // Logical id: cluster in the upper half, one bit in the lower.
            0x80D => Ok(u64::from((ID >> 4) << 16 | 1 << (ID & 0xF))),
            0x80F => Ok(self.spurious),
            0x810..=0x817 => Ok(self.in_service.register(msr - 0x810)),
            // Trigger mode: everything here is edge-triggered.
            0x818..=0x81F => Ok(0),
            0x820..=0x827 => Ok(self.requested.register(msr - 0x820)),
            0x828 => Ok(self.errors_shown),
            0x830 => Ok(self.command),
            0x838 => Ok(self.initial),
            0x839 => Ok(self.current_count()),
            0x83E => Ok(self.divide),
            _ => Err(Refused),
        }
    }

    /// WRMSR of 0x800-0x83F.
    pub fn write(&mut self, msr: u32, value: u64) -> Result<(), Refused> {
        if msr != 0x830 && value >> 32 != 0 {
            return Err(Refused);
        }
        if let Some(index) = Self::local_index(msr) {
            return self.write_local(index, value);
        }
        match msr {
            0x808 if value <= 0xFF => self.task_priority = value as u8,
            0x80B if value == 0 => self.end_of_interrupt(),
            0x80F if value & !0x11FF == 0 => {
                self.spurious = value;
                if value & SOFTWARE_ENABLE == 0 {
                    self.local.iter_mut().for_each(|entry| *entry |= MASKED);
                }
            }
            0x828 if value == 0 => {
                self.errors_shown = std::mem::take(&mut self.errors);
            }
            0x830 => self.command(value)?,
            0x838 => {
                self.initial = value;
                self.arm();
            }
            0x83E if value & !0xB == 0 => {
                self.divide = value;
                if self.deadline.is_some() {
                    self.arm();
                }
            }
            // Self IPI.
            0x83F if value <= 0xFF => self.send(value as u8),
            _ => return Err(Refused),
        }
        Ok(())
    }

    fn write_local(&mut self, index: usize, value: u64) -> Result<(), Refused> {
        let writable = match index {
            TIMER => 0xFF | MASKED | 3 << 17,
            4 | 5 => 0x7FF | 1 << 13 | 1 << 15 | MASKED,
            ERROR => 0xFF | MASKED,
            _ => 0x7FF | MASKED,
        };
        // Delivery status and remote IRR are read-only; TSC-deadline mode is not reported.
        if value & !(writable | 1 << 12 | 1 << 14) != 0
            || (index == TIMER && value & (3 << 17) > PERIODIC)
        {
            return Err(Refused);
        }
        let mut value = value & writable;
        if self.spurious & SOFTWARE_ENABLE == 0 {
            value |= MASKED;
        }
        if let Some(entry) = self.local.get_mut(index) {
            *entry = value;
        }
        Ok(())
    }

    fn send(&mut self, vector: u8) {
        if vector < 16 {
            self.error(ESR_SEND_ILLEGAL);
        } else {
            self.request(vector);
        }
    }

    /// Interrupt command: only this processor exists; what is sent to others goes nowhere.
    fn command(&mut self, value: u64) -> Result<(), Refused> {
        if value & 0xFFF3_2000 != 0 {
            return Err(Refused);
        }
        self.command = value;
        let destination = (value >> 32) as u32;
        let to_us = match (value >> 18) & 3 {
            0 if value & 1 << 11 != 0 => destination >> 16 == ID >> 4 && destination & 1 != 0,
            0 => destination == ID || destination == u32::MAX,
            // Self, all including self; all excluding self is nobody.
            1 | 2 => true,
            _ => false,
        };
        // Fixed and lowest priority. INIT and start-up to ourselves make no sense.
        if to_us && (value >> 8) & 7 <= 1 {
            self.send(value as u8);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apic() -> (Apic, Clock) {
        let clock = Clock::deterministic(1);
        let mut apic = Apic::new(clock.clone());
        assert_eq!(apic.write(0x80F, 0x1FF), Ok(()));
        (apic, clock)
    }

    #[test]
    fn priorities_decide_what_is_deliverable() {
        let (mut apic, _) = apic();
        apic.request(0x41);
        apic.request(0x52);
        assert_eq!(apic.deliverable(), Some(0x52));
        apic.acknowledge(0x52);
        assert_eq!(apic.deliverable(), None);
        assert_eq!(apic.read(0x812), Ok(1 << (0x52 - 0x40)));
        assert_eq!(apic.write(0x80B, 0), Ok(()));
        assert_eq!(apic.deliverable(), Some(0x41));
        apic.set_cr8(4);
        assert_eq!(apic.deliverable(), None);
    }

    #[test]
    fn the_timer_counts_the_clock() {
        let (mut apic, clock) = apic();
        assert_eq!(apic.write(0x832, 0x50 | PERIODIC), Ok(()));
        assert_eq!(apic.write(0x83E, 3), Ok(())); // divide by 16
        assert_eq!(apic.write(0x838, 100), Ok(()));
        clock.advance_to(800);
        assert_eq!(apic.read(0x839), Ok(50));
        apic.poll();
        assert_eq!(apic.deliverable(), None);
        clock.advance_to(1600);
        apic.poll();
        assert_eq!(apic.deliverable(), Some(0x50));
        assert_eq!(apic.deadline(), Some(3200));
        assert_eq!(apic.write(0x838, 0), Ok(()));
        assert_eq!(apic.deadline(), None);
    }

    #[test]
    fn reserved_registers_and_bits_are_refused() {
        let (mut apic, _) = apic();
        for (msr, value) in [
            (0x802, 0),
            (0x80B, 1),
            (0x83E, 4),
            (0x808, 0x100),
            (0x804, 0),
        ] {
            assert_eq!(apic.write(msr, value), Err(Refused), "{msr:x}");
        }
        assert_eq!(apic.write(0x832, 2 << 17), Err(Refused));
        assert_eq!(apic.read(0x80B), Err(Refused));
        assert_eq!(apic.read(0x831), Err(Refused));
    }

    #[test]
    fn an_illegal_vector_is_reported_in_the_error_register() {
        let (mut apic, _) = apic();
        assert_eq!(apic.write(0x83F, 5), Ok(()));
        assert_eq!(apic.write(0x828, 0), Ok(()));
        assert_eq!(apic.read(0x828), Ok(ESR_SEND_ILLEGAL));
    }
}
