//! How many guest instructions per second the software processor executes: a few tiny loops.
//!
//! `cargo run --release --example mips [seconds per loop]`

use std::time::{Duration, Instant};
use teuthis_hypervisor::{
    clock::Clock,
    memory::GuestMemory,
    processor::{BootState, Intercept, Processor, soft::SoftProcessor},
};

const CODE: u64 = 0x10_0000;

const LOOPS: [(&str, &[u8]); 4] = [
    // l: add rax, rcx; xor rdx, rax; dec rcx; jnz l; jmp l
    (
        "integer",
        &[
            0x48, 0x01, 0xC8, 0x48, 0x31, 0xC2, 0x48, 0xFF, 0xC9, 0x75, 0xF5, 0xEB, 0xF3,
        ],
    ),
    // l: mov rax, [rsi]; add rax, rcx; mov [rdi+8], rax; lea rcx, [rcx+1]; cmp rcx, rbx; jne l; jmp l
    (
        "memory",
        &[
            0x48, 0x8B, 0x06, 0x48, 0x01, 0xC8, 0x48, 0x89, 0x47, 0x08, 0x48, 0x8D, 0x49, 0x01,
            0x48, 0x39, 0xD9, 0x75, 0xED, 0xEB, 0xEB,
        ],
    ),
    // l: call f; call f; jmp l; f: push rbp; mov rbp, rsp; pop rbp; ret
    (
        "calls",
        &[
            0xE8, 0x07, 0, 0, 0, 0xE8, 0x02, 0, 0, 0, 0xEB, 0xF4, 0x55, 0x48, 0x89, 0xE5, 0x5D,
            0xC3,
        ],
    ),
    // xorshift with a data-dependent branch:
    // l: mov rdx, rax; shl rdx, 13; xor rax, rdx; mov rdx, rax; shr rdx, 7; xor rax, rdx;
    //    mov rdx, rax; shl rdx, 17; xor rax, rdx; test al, 1; jz l; inc rbx; jmp l
    (
        "branches",
        &[
            0x48, 0x89, 0xC2, 0x48, 0xC1, 0xE2, 13, 0x48, 0x31, 0xD0, 0x48, 0x89, 0xC2, 0x48, 0xC1,
            0xEA, 7, 0x48, 0x31, 0xD0, 0x48, 0x89, 0xC2, 0x48, 0xC1, 0xE2, 17, 0x48, 0x31, 0xD0,
            0xA8, 1, 0x74, 0xDE, 0x48, 0xFF, 0xC3, 0xEB, 0xD9,
        ],
    ),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let seconds = std::env::args()
        .nth(1)
        .map_or(Ok(1.0), |text| text.parse())?;
    for (name, code) in LOOPS {
        let memory = GuestMemory::anonymous(4 << 20)?;
        memory.write_bytes(CODE, code).ok_or("code does not fit")?;
        // Identity map of the first GiB by 2 MiB pages.
        memory.write(0x1000, 0x2003_u64).ok_or("no RAM")?;
        memory.write(0x2000, 0x3003_u64).ok_or("no RAM")?;
        for i in 0..512 {
            memory
                .write(0x3000 + i * 8, i << 21 | 0x83)
                .ok_or("no RAM")?;
        }
        let boot = BootState {
            rip: CODE,
            rsi: 0x20_0000,
            rsp: 0x30_0000,
            cr3: 0x1000,
            ..BootState::default()
        };
        let mut processor = SoftProcessor::new(memory, boot, Clock::host());
        let cpu = processor.cpu_mut();
        cpu.gpr[0] = 1;
        cpu.gpr[7] = 0x20_1000;
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs_f64(seconds) {
            let intercept = processor.run(1 << 20);
            if intercept != Intercept::SliceEnd {
                return Err(format!("{name}: stopped by {intercept:?}").into());
            }
        }
        let rate = processor.instructions() as f64 / start.elapsed().as_secs_f64() / 1e6;
        println!("{name:10} {rate:7.1} million instructions per second");
    }
    Ok(())
}
