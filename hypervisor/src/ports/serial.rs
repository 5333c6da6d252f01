//! A 16550 serial port that only transmits and never interrupts: the kernel's console.

use crate::{
    flows::values,
    record::{Malformed, Record, check},
};

/// How much output is held until somebody takes it.
const BUFFER: usize = values::PORT_SERIAL_HELD_MAX as usize;

/// Register numbers; with `DIVISOR_ACCESS` set in LCR, 0 and 1 are the baud rate divisor.
const DATA: u16 = 0;
const IER: u16 = 1;
const IIR_FCR: u16 = 2;
const LCR: u16 = 3;
const MCR: u16 = 4;
const LSR: u16 = 5;
const MSR: u16 = 6;
const SCRATCH: u16 = 7;

const DIVISOR_ACCESS: u8 = 0x80;
const LOOPBACK: u8 = 0x10;
const FIFO_ENABLE: u8 = 0x01;
/// No interrupt pending; the upper bits say that the FIFOs are enabled.
const IIR_NONE: u8 = 0x01;
const IIR_FIFOS: u8 = 0xC0;
/// Transmitter and its holding register are empty.
const LSR_EMPTY: u8 = 0x60;
/// Carrier, data set ready, clear to send.
const MSR_CONNECTED: u8 = 0xB0;

#[derive(Default)]
pub struct Serial {
    divisor: [u8; 2],
    ier: u8,
    fifo: bool,
    lcr: u8,
    mcr: u8,
    scratch: u8,
    output: Vec<u8>,
}

impl Serial {
    /// Saves or restores the registers and the output that nobody has taken.
    pub fn state(&mut self, record: &mut Record) -> Result<(), Malformed> {
        record.field(&mut self.divisor)?;
        record.fields([
            &mut self.ier,
            &mut self.lcr,
            &mut self.mcr,
            &mut self.scratch,
        ])?;
        record.field(&mut self.fifo)?;
        record.field(&mut self.output)?;
        check(self.output.len() <= BUFFER, "too much serial output")
    }

    pub fn read(&self, register: u16) -> u8 {
        let divisor = self.lcr & DIVISOR_ACCESS != 0;
        match register {
            DATA if divisor => self.divisor[0],
            IER if divisor => self.divisor[1],
            IER => self.ier,
            IIR_FCR if self.fifo => IIR_NONE | IIR_FIFOS,
            IIR_FCR => IIR_NONE,
            LCR => self.lcr,
            MCR => self.mcr,
            // A full buffer makes the guest wait: its own output holds it back, not our memory.
            LSR if self.output.len() < BUFFER => LSR_EMPTY,
            // DTR, RTS, OUT1, OUT2 come back as DSR, CTS, RI, DCD.
            MSR if self.mcr & LOOPBACK != 0 => {
                (self.mcr & 1) << 5 | (self.mcr & 2) << 3 | (self.mcr & 0xC) << 4
            }
            MSR => MSR_CONNECTED,
            SCRATCH => self.scratch,
            // Nothing is ever received.
            _ => 0,
        }
    }

    /// `false` when a byte was lost because the guest did not wait for room.
    pub fn write(&mut self, register: u16, value: u8) -> bool {
        let divisor = self.lcr & DIVISOR_ACCESS != 0;
        match register {
            DATA if divisor => self.divisor[0] = value,
            IER if divisor => self.divisor[1] = value,
            DATA if self.mcr & LOOPBACK != 0 => {}
            DATA if self.output.len() < BUFFER => self.output.push(value),
            DATA => return false,
            IER => self.ier = value & 0x0F,
            IIR_FCR => self.fifo = value & FIFO_ENABLE != 0,
            LCR => self.lcr = value,
            MCR => self.mcr = value & 0x1F,
            SCRATCH => self.scratch = value,
            _ => {}
        }
        true
    }

    /// Output that waits to be taken.
    pub fn output(&self) -> &[u8] {
        &self.output
    }

    /// Whether the output should go out now: a whole line, or no room for more.
    pub fn is_due(&self) -> bool {
        self.output.len() >= BUFFER || self.output.last() == Some(&b'\n')
    }

    /// Forgets the output, which was sent.
    pub fn clear(&mut self) {
        self.output.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_held_and_bounded() {
        let mut serial = Serial::default();
        for _ in 0..BUFFER {
            assert_eq!(serial.read(LSR), LSR_EMPTY);
            assert!(serial.write(DATA, b'x'));
        }
        assert!(serial.is_due());
        assert_eq!(serial.read(LSR), 0);
        assert!(!serial.write(DATA, b'x'));
        assert_eq!(serial.output().len(), BUFFER);
        serial.clear();
        serial.write(DATA, b'\n');
        assert!(serial.is_due());
    }

    #[test]
    fn it_looks_like_a_16550_to_a_probe() {
        let mut serial = Serial::default();
        serial.write(IER, 0xFF);
        assert_eq!(serial.read(IER), 0x0F);
        serial.write(MCR, LOOPBACK | 0x0A);
        assert_eq!(serial.read(MSR) & 0xF0, 0x90);
        serial.write(DATA, b'x');
        assert_eq!(serial.output(), b"");
        serial.write(MCR, 0);
        serial.write(IIR_FCR, 1);
        assert_eq!(serial.read(IIR_FCR), 0xC1);
        serial.write(LCR, DIVISOR_ACCESS);
        serial.write(DATA, 0x42);
        assert_eq!((serial.read(DATA), serial.output()), (0x42, &b""[..]));
        serial.write(LCR, 3);
        assert_eq!(serial.read(DATA), 0);
    }
}
