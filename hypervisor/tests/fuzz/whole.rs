//! The whole path: a tiny hostile guest on the deterministic processor, whose program is made of the
//! fuzzer's bytes, against the real partition, in turns with a worker that does as the bytes say.
//! Everything starts anew for each input.

use super::bytes::Bytes;
use teuthis_hypervisor::{
    clock::Clock,
    counters::Counters,
    flows::values,
    guest::Guest,
    link::{End, FromWorker, Payload, ToWorker},
    lockstep::{Lockstep, Partner},
    memory::GuestMemory,
    processor::{BootState, Processor, soft::SoftProcessor},
    recording::{Input, Point, Stop, Turn},
};

const MEMORY: u64 = 1 << 20;
const PAGE_MAP: u64 = 0x1000;
const GDT: u64 = 0x5000;
const IDT: u64 = 0x6000;
const HANDLERS: u64 = 0x7000;
const IDT_POINTER: u64 = 0x7800;
const CODE: u64 = 0x1_0000;
const STACK: u64 = 0x8_0000;
/// Where the guest likes its pages: hypercall inputs, SynIC pages, page lists.
const PAGES: u64 = 0x4_0000;
const IO_APIC: u64 = values::MEMORY_IOAPIC_BASE;
const MOST_CODE: usize = 0x8000;
const MOST_INSTRUCTIONS: u64 = 100_000;
const MOST_TURNS: usize = 500;

/// Skips an instruction of three bytes that raised an exception without an error code:
/// add qword [rsp], 3; iretq.
const SKIP: [u8; 7] = [0x48, 0x83, 0x04, 0x24, 3, 0x48, 0xCF];
/// The same after one with an error code: add rsp, 8 before.
const SKIP_ERROR: [u8; 11] = [0x48, 0x83, 0xC4, 8, 0x48, 0x83, 0x04, 0x24, 3, 0x48, 0xCF];
/// push rax, rcx, rdx; x2APIC's end of interrupt; pop; iretq.
const ACKNOWLEDGE: [u8; 19] = [
    0x50, 0x51, 0x52, 0xB9, 0x0B, 0x08, 0, 0, 0x31, 0xC0, 0x31, 0xD2, 0x0F, 0x30, 0x5A, 0x59, 0x58,
    0x48, 0xCF,
];
const WITH_ERROR: [u64; 7] = [8, 10, 11, 12, 13, 14, 17];

pub fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let count = bytes.below(512) as usize;
    let program = program(&mut Bytes(bytes.take(count * 4)));
    let memory = GuestMemory::anonymous(MEMORY).unwrap();
    load(&memory, &program);
    let boot = BootState {
        rip: CODE,
        rsi: 0,
        rsp: STACK,
        cr3: PAGE_MAP,
        gdt_base: GDT,
        gdt_limit: 31,
    };
    let clock = Clock::deterministic(1);
    let counters = Counters::anonymous().unwrap();
    let processor = SoftProcessor::new(memory, boot, clock.clone());
    let guest = Guest::new(processor.hypercall_code(), 1, clock, 0, counters);
    let worker = Worker {
        bytes: Bytes(bytes.0),
        turns: 0,
    };
    match Lockstep::new(Box::new(processor), guest, worker, MOST_INSTRUCTIONS).run() {
        Stop::End(_) | Stop::Until => {}
        stop => panic!("{stop:?}"),
    }
}

/// Tables, and handlers that let the program go on after whatever it runs into.
fn load(memory: &GuestMemory, program: &[u8]) {
    let put = |place, value: u64| memory.write(place, value).unwrap();
    put(PAGE_MAP, 0x2003);
    put(0x2000, 0x83); // one 1 GiB page at 0, one for the hole below 4 GiB
    put(0x2018, 0xC000_0083);
    put(GDT + 0x10, 0x00AF_9B00_0000_FFFF);
    put(GDT + 0x18, 0x00CF_9300_0000_FFFF);
    memory.write(IDT_POINTER, 0xFFF_u16).unwrap();
    memory.write(IDT_POINTER + 2, IDT).unwrap();
    for (number, handler) in [&SKIP[..], &SKIP_ERROR, &ACKNOWLEDGE]
        .into_iter()
        .enumerate()
    {
        let place = HANDLERS + 0x40 * number as u64;
        memory.write_bytes(place, handler).unwrap();
    }
    for vector in 0..256 {
        let handler = match vector {
            32.. => HANDLERS + 0x80,
            _ if WITH_ERROR.contains(&vector) => HANDLERS + 0x40,
            _ => HANDLERS,
        };
        put(IDT + 16 * vector, handler | 0x10 << 16 | 0x8E << 40);
    }
    memory.write_bytes(CODE, program).unwrap();
}

/// Machine code of what the bytes say, round and round.
fn program(bytes: &mut Bytes) -> Vec<u8> {
    // lidt [IDT_POINTER]; then a guest that says who it is and has a hypercall page.
    let mut code = vec![0x0F, 0x01, 0x1C, 0x25];
    code.extend((IDT_POINTER as u32).to_le_bytes());
    write_msr(&mut code, 0x4000_0000, 1);
    write_msr(&mut code, 0x4000_0001, PAGES | 1);
    let start = code.len();
    while !bytes.0.is_empty() && code.len() < MOST_CODE {
        match bytes.byte() % 12 {
            0 => write_msr(&mut code, register(bytes), bytes.value()),
            1 => {
                code.push(0xB9);
                code.extend(register(bytes).to_le_bytes());
                code.extend([0x0F, 0x32, 0x90]); // rdmsr; nop
            }
            2 | 3 => {
                let control = [0x5C, 0x1_005D, bytes.value()][bytes.below(3) as usize];
                let input = address(bytes);
                load_register(&mut code, &[0x48, 0xB9], control);
                load_register(&mut code, &[0x48, 0xBA], input);
                load_register(&mut code, &[0x49, 0xB8], address(bytes));
                code.extend([0x0F, 0x01, 0xD9]); // vmmcall
            }
            4..=6 => {
                // Something into a page: mov rax, value; mov rcx, address; mov [rcx], rax.
                load_register(&mut code, &[0x48, 0xB8], bytes.value());
                let address = address(bytes);
                load_register(&mut code, &[0x48, 0xB9], address);
                if address >= IO_APIC {
                    code.extend([0x89, 0x01, 0x8B, 0x01]); // mov [rcx], eax; mov eax, [rcx]
                } else {
                    code.extend([0x48, 0x89, 0x01]);
                }
            }
            7 => {
                code.extend([0x66, 0xBA]);
                code.extend(port(bytes).to_le_bytes());
                code.extend([0xB0, bytes.byte()]);
                code.push([0xEE, 0xEC][bytes.below(2) as usize]); // out dx, al; in al, dx
            }
            8 => {
                code.push(0xB8);
                code.extend((bytes.value() as u32).to_le_bytes());
                code.extend([0x0F, 0xA2]); // cpuid
            }
            9 => code.push(0xFA),            // cli
            10 => code.extend([0xFB, 0xF4]), // sti; hlt
            _ => code.push(0xFB),            // sti
        }
    }
    // jmp back
    code.push(0xE9);
    let back = start as i32 - (code.len() as i32 + 4);
    code.extend(back.to_le_bytes());
    code
}

fn load_register(code: &mut Vec<u8>, instruction: &[u8], value: u64) {
    code.extend(instruction);
    code.extend(value.to_le_bytes());
}

fn write_msr(code: &mut Vec<u8>, register: u32, value: u64) {
    code.push(0xB9);
    code.extend(register.to_le_bytes());
    load_register(code, &[0x48, 0xB8], value & 0xFFFF_FFFF);
    load_register(code, &[0x48, 0xBA], value >> 32);
    code.extend([0x0F, 0x30, 0x90]); // wrmsr; nop
}

fn register(bytes: &mut Bytes) -> u32 {
    match bytes.byte() % 4 {
        0 => 0x4000_0000 + bytes.below(0x120) as u32,
        1 => 0x4000_0080 + bytes.below(0x40) as u32,
        2 => 0x800 + bytes.below(64) as u32,
        _ => bytes.number(4) as u32,
    }
}

fn address(bytes: &mut Bytes) -> u64 {
    match bytes.byte() % 8 {
        0 => MEMORY - bytes.number(1),
        1 => bytes.value(),
        2 => IO_APIC + bytes.below(2) * 0x10,
        _ => PAGES + (bytes.number(1) % 16) * 0x1000 + bytes.number(1) * 8,
    }
}

fn port(bytes: &mut Bytes) -> u16 {
    match bytes.byte() % 3 {
        0 => 0x3F8 + bytes.below(8) as u16,
        1 => [0x70, 0x71, 0x600, 0x601, 0x602][bytes.below(5) as usize],
        _ => bytes.number(2) as u16,
    }
}

/// A worker that does as the bytes say.
struct Worker<'a> {
    bytes: Bytes<'a>,
    turns: usize,
}

impl Partner for Worker<'_> {
    fn give(&mut self, message: &ToWorker) {
        if let ToWorker::PostMessage {
            connection,
            payload,
            ..
        } = *message
        {
            assert!(connection == 1 || connection == 4);
            assert!(payload.len() <= 240);
        }
    }

    fn ring(&mut self, channel: u16) {
        assert!((1..2048).contains(&channel));
    }

    fn turn(&mut self, _: Point, wait: u64, memory: &GuestMemory) -> Result<Turn, Stop> {
        self.turns += 1;
        if self.turns > MOST_TURNS || (self.bytes.0.is_empty() && wait == u64::MAX) {
            return Err(End::Stopped.into());
        }
        let bytes = &mut self.bytes;
        let mut turn = Turn {
            slept: wait.min(1_000_000),
            ..Turn::default()
        };
        for _ in 0..bytes.below(4) {
            let channel = 1 + bytes.below(2047) as u16;
            turn.inputs.push(match bytes.byte() % 4 {
                0 => Input::Doorbell(channel),
                1 => Input::Message(FromWorker::OpenPort { channel }),
                2 => {
                    let (at, count) = (bytes.below(MEMORY), bytes.below(64) as usize);
                    let _ = memory.write_bytes(at, bytes.take(count));
                    Input::Doorbell(channel)
                }
                _ => {
                    let count = bytes.below(241) as usize;
                    let payload = Payload::new(bytes.take(count)).unwrap();
                    Input::Message(FromWorker::DeliverMessage {
                        vp: 0,
                        sint: bytes.byte() % 16,
                        kind: bytes.number(4) as u32,
                        payload,
                    })
                }
            });
        }
        Ok(turn)
    }

    fn end(&mut self, _: Point, end: End) -> Stop {
        end.into()
    }
}
