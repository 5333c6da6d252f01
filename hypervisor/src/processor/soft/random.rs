//! What RDRAND and RDSEED return: the host's random numbers, or with the deterministic clock the
//! same sequence each time.

use crate::record::{Malformed, Record, check};

/// Random numbers drawn from the host in one system call.
const POOL: usize = 256;

pub struct Random {
    /// State of the deterministic generator.
    seed: Option<u64>,
    pool: [u8; POOL],
    used: usize,
}

impl Random {
    pub fn new(deterministic: bool) -> Self {
        Self {
            seed: deterministic.then_some(0),
            pool: [0; POOL],
            used: POOL,
        }
    }

    /// Begins another deterministic sequence.
    pub fn set_seed(&mut self, seed: u64) {
        if let Some(state) = &mut self.seed {
            *state = seed;
        }
    }

    /// Saves or restores the deterministic sequence; the host's numbers are drawn anew, so that
    /// copies of a machine do not repeat each other's.
    pub fn state(&mut self, record: &mut Record) -> Result<(), Malformed> {
        let deterministic = self.seed.is_some();
        record.field(&mut self.seed)?;
        self.used = POOL;
        check(self.seed.is_some() == deterministic, "random numbers")
    }

    /// The next number; `None` when the host has none (the instruction then reports failure).
    pub fn draw(&mut self) -> Option<u64> {
        if let Some(seed) = &mut self.seed {
            // SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators).
            *seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut value = *seed;
            value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            return Some(value ^ (value >> 31));
        }
        if self.used >= POOL {
            let filled =
                rustix::rand::getrandom(&mut self.pool[..], rustix::rand::GetRandomFlags::empty());
            if filled != Ok(POOL) {
                return None;
            }
            self.used = 0;
        }
        let taken = self.pool.get_mut(self.used..self.used + 8)?;
        let value = u64::from_le_bytes((&*taken).try_into().ok()?);
        taken.fill(0);
        self.used += 8;
        Some(value)
    }
}
