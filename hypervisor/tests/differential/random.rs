//! Operands: a deterministic generator that likes corners.

/// SplitMix64 (Steele, Lea, Flood 2014): any seed gives a full-period sequence.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `limit` (not 0).
    pub fn below(&mut self, limit: u64) -> u64 {
        self.u64() % limit
    }

    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// An integer operand: corners of all sizes, few bits, or anything.
    pub fn integer(&mut self) -> u64 {
        match self.below(8) {
            0 => self.pick(&[0, 1, 2, u64::MAX, u64::MAX - 1]),
            1 => {
                let bits = self.pick(&[8, 16, 32, 64]);
                let top = 1u64 << (bits - 1);
                let near = self.pick(&[top, top - 1, top + 1, top.wrapping_mul(2).wrapping_sub(1)]);
                if self.chance(50) {
                    near
                } else {
                    near | (self.u64() & !(top | (top - 1)))
                }
            }
            2 => 1u64 << self.below(64),
            3 => self.below(256),
            4 => self.below(256).wrapping_neg(),
            5 => self.u64() & self.u64() & self.u64(),
            _ => self.u64(),
        }
    }

    /// A single-precision number with corners.
    pub fn f32(&mut self) -> u32 {
        let sign = (self.u64() as u32) & (1 << 31);
        let magnitude = match self.below(12) {
            0 => 0,
            1 => 0x3F80_0000,                                // 1
            2 => 0x7F80_0000,                                // infinity
            3 => 0x7FC0_0000 | (self.u64() as u32 & 0xFFFF), // quiet NaN
            4 => 0x7F80_0001 | (self.u64() as u32 & 0xFFFF), // signalling NaN
            5 => self.u64() as u32 & 0x007F_FFFF,            // denormal
            6 => self.pick(&[0x0080_0000, 0x7F7F_FFFF, 1]),  // least normal, greatest, least
            7 => (self.below(512) as f32).to_bits(),
            8 => (self.below(1 << 33) as f32).to_bits(),
            9 => (self.below(4000) as f32 / 8.0).to_bits(),
            _ => self.u64() as u32 & 0x7FFF_FFFF,
        };
        sign | magnitude
    }

    /// A double-precision number with corners.
    pub fn f64(&mut self) -> u64 {
        let sign = self.u64() & (1 << 63);
        let magnitude = match self.below(12) {
            0 => 0,
            1 => 0x3FF0_0000_0000_0000,
            2 => 0x7FF0_0000_0000_0000,
            3 => 0x7FF8_0000_0000_0000 | (self.u64() & 0xFFFF_FFFF),
            4 => 0x7FF0_0000_0000_0001 | (self.u64() & 0xFFFF_FFFF),
            5 => self.u64() & 0x000F_FFFF_FFFF_FFFF,
            6 => self.pick(&[0x0010_0000_0000_0000, 0x7FEF_FFFF_FFFF_FFFF, 1]),
            7 => (self.below(512) as f64).to_bits(),
            8 => (self.u64() as f64).to_bits(),
            9 => (self.below(4000) as f64 / 8.0).to_bits(),
            10 => f64::from(f32::from_bits(self.f32())).to_bits() & !(1 << 63),
            _ => self.u64() & !(1 << 63),
        };
        sign | magnitude
    }

    /// An 80-bit extended number with corners, valid encodings only (see the manual's table of
    /// unsupported formats).
    pub fn f80(&mut self) -> [u8; 10] {
        let integer_bit = 1u64 << 63;
        let sign = (self.u64() as u16) & 0x8000;
        let (exponent, significand) = match self.below(12) {
            0 => (0, 0),
            1 => (0x3FFF, integer_bit),
            2 => (0x7FFF, integer_bit),
            3 => (0x7FFF, 0xC000_0000_0000_0000 | self.below(1 << 32)),
            4 => (0x7FFF, integer_bit | 1 | self.below(1 << 32)),
            5 => (0, self.u64() >> 1),
            6 => self.pick(&[(1, integer_bit), (0x7FFE, u64::MAX), (0, 1)]),
            7..=9 => (
                0x3FFF - 20 + self.below(90) as u16,
                self.u64() | integer_bit,
            ),
            10 => (
                0x3FFF + self.below(10) as u16,
                (self.below(64) << 57) | integer_bit,
            ),
            _ => (1 + self.below(0x7FFE) as u16, self.u64() | integer_bit),
        };
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&significand.to_le_bytes());
        bytes[8..].copy_from_slice(&(sign | exponent).to_le_bytes());
        bytes
    }

    /// 16 bytes of one flavour: integers, singles, doubles, bytes.
    pub fn vector(&mut self) -> u128 {
        match self.below(4) {
            0 => u128::from(self.integer()) | u128::from(self.integer()) << 64,
            1 => (0..4).fold(0, |v, _| v << 32 | u128::from(self.f32())),
            2 => u128::from(self.f64()) | u128::from(self.f64()) << 64,
            _ => u128::from(self.u64()) | u128::from(self.u64()) << 64,
        }
    }
}
