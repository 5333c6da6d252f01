//! Crash MSRs: five parameters and a control register by which a guest tells that it panicked.
//! The text they point at is read and validated by the worker, not here.

use crate::{
    link::End,
    record::{Malformed, Record},
};

/// The guest asks to notify the host; all 0 to 4 parameters are valid.
const NOTIFY: u64 = 1 << 63;
/// P3 is the guest physical address, P4 the length of a text.
const MESSAGE: u64 = 1 << 62;

#[derive(Default)]
pub struct Crash {
    parameters: [u64; 5],
}

impl Crash {
    pub fn state(&mut self, record: &mut Record) -> Result<(), Malformed> {
        record.field(&mut self.parameters)
    }

    /// Parameter `index`, if there is one.
    pub fn parameter(&self, index: usize) -> Option<u64> {
        self.parameters.get(index).copied()
    }

    /// Nothing when there is no such parameter.
    pub fn set_parameter(&mut self, index: usize, value: u64) {
        if let Some(parameter) = self.parameters.get_mut(index) {
            *parameter = value;
        }
    }

    /// The control register reads as what is supported.
    pub fn control(&self) -> u64 {
        NOTIFY | MESSAGE
    }

    /// Whether `value`, written to the control register, says more than we know.
    pub fn has_unknown_bits(value: u64) -> bool {
        value & !(NOTIFY | MESSAGE) != 0
    }

    /// `Some` when the guest reports its crash; unknown bits are passed over.
    pub fn set_control(&self, value: u64) -> Option<End> {
        let [p0, p1, p2, p3, p4] = self.parameters;
        let control = value & (NOTIFY | MESSAGE);
        (value & NOTIFY != 0).then_some(End::GuestCrash([p0, p1, p2, p3, p4, control]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_carries_the_parameters() {
        let mut crash = Crash::default();
        for index in 0..5 {
            crash.set_parameter(index, index as u64 + 10);
        }
        crash.set_parameter(5, 0);
        assert_eq!(crash.parameter(4), Some(14));
        assert_eq!(crash.parameter(5), None);
        assert_eq!(crash.set_control(MESSAGE | 1), None);
        let expected = End::GuestCrash([10, 11, 12, 13, 14, NOTIFY | MESSAGE]);
        assert_eq!(crash.set_control(NOTIFY | MESSAGE | 1), Some(expected));
    }
}
