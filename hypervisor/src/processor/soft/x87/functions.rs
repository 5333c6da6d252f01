//! The mathematics of the transcendental instructions, by series on 128-bit significands.

use crate::processor::soft::float::{Number, Wide};

/// Terms smaller than this, relative to the sum, no longer matter.
const NEGLIGIBLE: i32 = 130;

/// `1 + t1 + t2 + …` with `next(n, term n - 1)` giving term `n`.
fn series(next: impl Fn(u16, Wide) -> Wide) -> Wide {
    let (mut sum, mut term) = (Wide::ONE, Wide::ONE);
    for n in 1..64 {
        term = next(n, term);
        // Even a negligible first term says on which side of 1 the sum is.
        sum = sum.plus(term);
        if term.is_zero() || term.exponent < sum.exponent - NEGLIGIBLE {
            break;
        }
    }
    sum
}

/// Sine and cosine of a finite `x` with `|x| < 2^63`.
pub fn sine_cosine(x: Number) -> (Wide, Wide) {
    let (angle, quadrant) = reduce(x);
    let square = angle.multiply(angle).negated();
    let sine = angle.multiply(series(|n, term| {
        term.multiply(square).divide_small(2 * n * (2 * n + 1))
    }));
    let cosine = series(|n, term| term.multiply(square).divide_small(2 * n * (2 * n - 1)));
    let (sine, cosine) = match quadrant {
        0 => (sine, cosine),
        1 => (cosine, sine.negated()),
        2 => (sine.negated(), cosine.negated()),
        _ => (cosine.negated(), sine),
    };
    (if x.negative { sine.negated() } else { sine }, cosine)
}

/// Reduces `|x|` to at most a quarter of pi, with the number of quarter turns modulo 4. As on real
/// processors, pi has 66 bits here, so the reduction is exact.
fn reduce(x: Number) -> (Wide, u8) {
    /// Half of pi in units of 2^-67.
    const HALF_PI: i128 = 0xC_90FD_AA22_168C_234C;
    const UNIT: i32 = -67;
    let shift = x.exponent - 63 - UNIT;
    let angle = Wide::from_number(x).absolute();
    if shift < 0 {
        // Below a sixteenth.
        return (angle, 0);
    }
    let (mut rest, mut turns) = (i128::from(x.significand), 0_u8);
    for step in 0..=shift {
        if step > 0 {
            rest <<= 1;
            turns = turns << 1 & 3;
        }
        if rest >= HALF_PI {
            rest -= HALF_PI;
            turns += 1;
        }
    }
    if 2 * rest > HALF_PI {
        rest -= HALF_PI;
        turns += 1;
    }
    (Wide::from_integer(rest, UNIT), turns & 3)
}

/// Arc tangents of eighths.
const ARC_TANGENTS: [Wide; 9] = [
    Wide::ZERO,
    Wide::constant(-4, 0xFEAD_D4D5_617B_6E32_C897_989F_3E88_8EF7),
    Wide::constant(-3, 0xFADB_AFC9_6406_EB15_6DC7_9EF5_F7A2_17E5),
    Wide::constant(-2, 0xB7B0_CA0F_26F7_8473_8AA3_2122_DCFE_4483),
    Wide::constant(-2, 0xED63_382B_0DDA_7B45_6FE4_45EC_BC3A_8D03),
    Wide::constant(-1, 0x8F00_5D5E_F7F5_9F9B_5C83_5E16_65C4_3747),
    Wide::constant(-1, 0xA4BC_7D19_34F7_0924_19A8_7F2A_457D_AC9E),
    Wide::constant(-1, 0xB805_3E2B_C231_9E73_CB2D_A552_10A4_443D),
    Wide::constant(-1, 0xC90F_DAA2_2168_C234_C4C6_628B_80DC_1CD1),
];

/// The angle of the point (`x`, `y`); at least one of the two is not zero.
pub fn arc_tangent(y: Wide, x: Wide) -> Wide {
    let (rise, run) = (y.absolute(), x.absolute());
    let steep = (rise.exponent, rise.significand) > (run.exponent, run.significand);
    let angle = if run.is_zero() {
        Wide::PI.scaled(-1)
    } else if rise.is_zero() {
        Wide::ZERO
    } else if steep {
        Wide::PI.scaled(-1).minus(arc_tangent_below_one(run, rise))
    } else {
        arc_tangent_below_one(rise, run)
    };
    let angle = if x.negative {
        Wide::PI.minus(angle)
    } else {
        angle
    };
    if y.negative { angle.negated() } else { angle }
}

fn arc_tangent_below_one(rise: Wide, run: Wide) -> Wide {
    let tangent = rise.divide(run);
    // The nearest eighth: atan(t) = atan(c) + atan((t - c) / (1 + t c)).
    let eighths = match tangent.exponent {
        -4..=0 => ((tangent.significand >> (123 - tangent.exponent)) as usize).div_ceil(2),
        _ => 0,
    };
    let center = Wide::from_integer(eighths as i128, -3);
    let rest = if eighths == 0 {
        tangent
    } else {
        tangent
            .minus(center)
            .divide(Wide::ONE.plus(tangent.multiply(center)))
    };
    let offset = ARC_TANGENTS.get(eighths).copied().unwrap_or(Wide::ZERO);
    offset.plus(odd_series(rest, true))
}

/// `t ± t^3/3 + t^5/5 ± …`: the inverse tangents, circular (`alternating`) and hyperbolic.
fn odd_series(t: Wide, alternating: bool) -> Wide {
    let square = t.multiply(t);
    let square = if alternating {
        square.negated()
    } else {
        square
    };
    let (mut sum, mut power) = (Wide::ONE, Wide::ONE);
    for n in 1..64 {
        power = power.multiply(square);
        if power.is_zero() || power.exponent < -NEGLIGIBLE {
            break;
        }
        sum = sum.plus(power.divide_small(2 * n + 1));
    }
    t.multiply(sum)
}

/// The binary logarithm of a finite `x > 0`.
pub fn logarithm(x: Number) -> Wide {
    let mantissa = Wide::from_number(Number { exponent: 0, ..x });
    /// The square root of 2, roughly: above it, the logarithm is taken from the power above.
    const ROOT_2: u64 = 0xB504_F333_F9DE_6484;
    let (mantissa, exponent) = if x.significand > ROOT_2 {
        (mantissa.scaled(-1), x.exponent + 1)
    } else {
        (mantissa, x.exponent)
    };
    let fraction = logarithm_of_one_plus(mantissa.minus(Wide::ONE));
    Wide::from_integer(exponent.into(), 0).plus(fraction)
}

/// `log2(1 + x)` for `|x|` up to about 0.42.
pub fn logarithm_of_one_plus(x: Wide) -> Wide {
    let ratio = x.divide(Wide::ONE.scaled(1).plus(x));
    odd_series(ratio, false).scaled(1).multiply(Wide::LOG2_E)
}

/// `2^x - 1` for `|x| <= 1`.
pub fn power_minus_one(x: Wide) -> Wide {
    let t = x.multiply(Wide::LN_2);
    t.multiply(series(|n, term| term.multiply(t).divide_small(n + 1)))
}
