//! The few legacy ports a stock Linux kernel touches: a clock, a serial port for its console, the
//! ACPI power registers. Every other port reads all ones, ignores writes and is counted.

mod cmos;
mod serial;

pub use cmos::Cmos;
pub use serial::Serial;

use crate::{
    clock::Clock,
    counters::Counters,
    flows::{Flow, Reject, values},
    link::End,
    record::{Malformed, Record},
};

const CMOS_INDEX: u16 = values::PORT_CMOS_INDEX as u16;
const CMOS_DATA: u16 = values::PORT_CMOS_DATA as u16;
const SERIAL: u16 = values::PORT_SERIAL_BASE as u16;
const SERIAL_LAST: u16 = SERIAL + values::PORT_SERIAL_REGISTERS as u16 - 1;
const SLEEP_CONTROL: u16 = values::PORT_POWER_SLEEP_CONTROL as u16;
const SLEEP_STATUS: u16 = values::PORT_POWER_SLEEP_STATUS as u16;
const RESET: u16 = values::PORT_POWER_RESET as u16;
const RESET_VALUE: u32 = values::PORT_POWER_RESET_VALUE as u32;
/// ACPI 6.5, 4.8.3.7: SLP_EN is bit 5, SLP_TYP stands in bits 2-4.
const SLEEP_S5: u32 = (values::PORT_POWER_SLEEP_TYPE_S5 as u32) << 2 | 1 << 5;

pub struct Ports {
    cmos: Cmos,
    pub serial: Serial,
    counters: Counters,
}

impl Ports {
    /// `wall_clock`: seconds since 1970 (UTC) at time 0 of the VM's clock.
    pub fn new(wall_clock: u64, counters: Counters) -> Self {
        Self {
            cmos: Cmos::new(wall_clock),
            serial: Serial::default(),
            counters,
        }
    }

    /// `clock`: the VM's, restored before.
    pub fn state(&mut self, record: &mut Record, clock: &Clock) -> Result<(), Malformed> {
        self.cmos.state(record, clock)?;
        self.serial.state(record)
    }

    /// `now`: nanoseconds of the VM's clock. The result is cut to `size` bytes by its reader.
    pub fn read(&mut self, port: u16, size: u8, now: u64) -> u32 {
        let (flow, value) = match (port, size) {
            (CMOS_INDEX | CMOS_DATA, 1) => (Flow::PortCmos, self.cmos.read(port == CMOS_DATA, now)),
            (SERIAL..=SERIAL_LAST, 1) => (Flow::PortSerial, self.serial.read(port - SERIAL)),
            (SLEEP_CONTROL | SLEEP_STATUS | RESET, 1) => (Flow::PortPower, 0),
            _ => {
                self.counters.reject(refusal(port, size));
                return u32::MAX;
            }
        };
        self.counters.accept(flow, 1);
        value.into()
    }

    /// `Some` when the write ends the virtual machine.
    pub fn write(&mut self, port: u16, size: u8, value: u32) -> Option<End> {
        let byte = value as u8;
        let (flow, end) = match (port, size) {
            (CMOS_INDEX, 1) => {
                self.cmos.select(byte);
                (Flow::PortCmos, None)
            }
            (SERIAL..=SERIAL_LAST, 1) if self.serial.write(port - SERIAL, byte) => {
                (Flow::PortSerial, None)
            }
            (SLEEP_CONTROL, 1) if value & 0x3C == SLEEP_S5 => {
                (Flow::PortPower, Some(End::PowerOff))
            }
            // Linux clears the wake status before it sleeps.
            (SLEEP_STATUS, 1) => (Flow::PortPower, None),
            (RESET, 1) if value & 0xFF == RESET_VALUE => (Flow::PortPower, Some(End::Reset)),
            _ => {
                self.counters.reject(refusal(port, size));
                return None;
            }
        };
        self.counters.accept(flow, 1);
        end
    }
}

/// Why an access is refused.
fn refusal(port: u16, size: u8) -> Reject {
    let whole = size == 1;
    match port {
        CMOS_INDEX | CMOS_DATA if whole => Reject::PortCmosReadOnly,
        CMOS_INDEX | CMOS_DATA => Reject::PortCmosWidth,
        SERIAL..=SERIAL_LAST if whole => Reject::PortSerialFull,
        SERIAL..=SERIAL_LAST => Reject::PortSerialWidth,
        SLEEP_CONTROL | SLEEP_STATUS | RESET if whole => Reject::PortPowerValue,
        SLEEP_CONTROL | SLEEP_STATUS | RESET => Reject::PortPowerWidth,
        _ => Reject::PortUnknownAccess,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(port: u16) -> Flow {
        refusal(port, 1).flow()
    }

    fn ports() -> Ports {
        Ports::new(0, Counters::anonymous().unwrap())
    }

    #[test]
    fn only_the_agreed_values_end_the_vm() {
        for value in 0..=255 {
            let end = ports().write(SLEEP_CONTROL, 1, value);
            assert_eq!(
                end.is_some(),
                value & 0x3C == 0x34,
                "sleep control {value:#x}"
            );
            let end = ports().write(RESET, 1, value);
            assert_eq!(end, (value == 1).then_some(End::Reset));
            assert_eq!(ports().write(SLEEP_STATUS, 1, value), None);
        }
        assert_eq!(ports().write(SLEEP_CONTROL, 2, 0x34), None);
    }

    #[test]
    fn every_port_answers_every_access() {
        let mut ports = ports();
        for port in 0..=u16::MAX {
            for size in [1, 2, 4] {
                if owner(port) != Flow::PortPower {
                    assert_eq!(ports.write(port, size, 0x1234_5678), None);
                }
                let value = ports.read(port, size, 0);
                if size > 1 || owner(port) == Flow::PortUnknown {
                    assert_eq!(value, u32::MAX);
                }
            }
        }
        let count = |flow| ports.counters.get(flow);
        assert_eq!(count(Flow::PortUnknown).count, 0);
        assert_eq!(count(Flow::PortUnknown).rejected, 6 * (65536 - 2 - 8 - 3));
        assert_eq!(count(Flow::PortCmos).rejected, 8 + 1);
    }

    #[test]
    fn output_that_does_not_wait_for_room_is_dropped_and_counted() {
        let mut ports = ports();
        while ports.counters.rejected(Reject::PortSerialFull) == 0 {
            ports.write(SERIAL, 1, b'x'.into());
        }
        let written = ports.counters.get(Flow::PortSerial).count;
        assert_eq!(ports.serial.output().len() as u64, written);
    }
}
