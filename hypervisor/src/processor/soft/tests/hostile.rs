//! A hostile guest that only faults. Any code at all: `tests/fuzz/code.rs`.

use super::*;

#[test]
fn a_guest_that_only_faults_uses_up_its_slice() {
    // Each page fault's handler lies in a page that cannot be executed.
    let mut guest = Guest::with_code(&[0x0F, 0x0B]);
    guest.map(DATA, DATA | P | W | NX);
    for vector in [6, 14] {
        gate(guest.0.memory(), vector, DATA, 0x8E, 1);
    }
    assert_eq!(guest.run(), Intercept::SliceEnd);
    // Or it is the handler's first instruction that faults.
    let mut guest = Guest::with_code(&[0x0F, 0x0B]);
    gate(guest.0.memory(), 6, CODE, 0x8E, 1);
    assert_eq!(guest.run(), Intercept::SliceEnd);
    // Or a handler that returns into single steps.
    let mut guest = Guest::with_code(&[0x48, 0xCF]); // iretq
    gate(guest.0.memory(), 1, CODE, 0x8E, 1);
    for (i, word) in [CODE, KERNEL_CODE.into(), 0x102, INTERRUPT_STACK - 40, 0]
        .into_iter()
        .enumerate()
    {
        guest.put(INTERRUPT_STACK - 40 + i as u64 * 8, word);
    }
    guest.cpu_mut().gpr[4] = INTERRUPT_STACK - 40;
    assert_eq!(guest.run(), Intercept::SliceEnd);
}
