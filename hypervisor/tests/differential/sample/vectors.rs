//! Contents of the vector and x87 registers.

use super::Builder;
use crate::layout::fx;

impl Builder<'_> {
    /// Whether vector or x87 registers matter.
    pub(super) fn is_vector(&self) -> bool {
        let features = self.form.code.cpuid_features();
        features.iter().any(|feature| {
            use iced_x86::CpuidFeature::*;
            matches!(
                feature,
                MMX | SSE
                    | SSE2
                    | SSE3
                    | SSSE3
                    | SSE4_1
                    | SSE4_2
                    | AES
                    | PCLMULQDQ
                    | SHA
                    | FPU
                    | FPU287
                    | FPU387
                    | FXSR
            )
        })
    }

    pub(super) fn fill_vectors(&mut self) {
        let image = &mut self.registers.fx.0;
        let mut put = |offset: usize, bytes: &[u8]| {
            image[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        // Vectors of one flavour most of the time, so that operands meet their like.
        let flavour = self.random.below(4);
        for i in 0..16 {
            let value = match flavour {
                0 => (0..4).fold(0, |v, _| v << 32 | u128::from(self.random.f32())),
                1 => u128::from(self.random.f64()) | u128::from(self.random.f64()) << 64,
                2 => u128::from(self.random.integer()) | u128::from(self.random.integer()) << 64,
                _ => self.random.vector(),
            };
            put(fx::XMM + 16 * i, &value.to_le_bytes());
        }
        let mxcsr: u32 = if self.random.chance(70) {
            0x1F80
        } else {
            // Any rounding, DAZ, FTZ, sticky flags; now and then an unmasked exception.
            let unmasked = if self.random.chance(30) {
                1 << (7 + self.random.below(6))
            } else {
                0
            };
            (0x1F80 & !unmasked) | (self.random.u64() as u32 & 0xE07F)
        };
        put(fx::MXCSR, &mxcsr.to_le_bytes());
        let control: u16 = if self.random.chance(60) {
            0x37F
        } else {
            let precision = self.random.pick(&[0u16, 2, 3]) << 8;
            let rounding = (self.random.below(4) as u16) << 10;
            let unmasked = if self.random.chance(30) {
                1u16 << self.random.below(6)
            } else {
                0
            };
            (0x7F & !unmasked) | precision | rounding
        };
        put(fx::FCW, &control.to_le_bytes());
        let top = self.random.below(8) as u16;
        // Condition codes and sticky flags that are not pending.
        let status = (top << 11)
            | (self.random.u64() as u16 & 0x4700)
            | (self.random.u64() as u16 & control & 0x3F);
        put(fx::FSW, &status.to_le_bytes());
        // Mostly full, so that stack faults stay the exception.
        let valid = match self.random.below(4) {
            0 => self.random.u64() as u8,
            1 => self.random.u64() as u8 | self.random.u64() as u8,
            _ => {
                // Full but for ST(7), where a push goes.
                let free = (top as u32 + 7) % 8;
                if self.random.chance(50) {
                    0xFF
                } else {
                    !(1u8 << free)
                }
            }
        };
        put(fx::FTW, &[valid]);
        for i in 0..8 {
            let bytes = if self.random.chance(15) {
                // What MMX leaves behind: exponent all ones.
                let mut bytes = [0xFF; 10];
                bytes[..8].copy_from_slice(&self.random.integer().to_le_bytes());
                bytes[7] |= 0x80;
                bytes
            } else {
                self.random.f80()
            };
            put(fx::ST + 16 * i, &bytes);
        }
    }
}
