//! Runs one instruction on the software processor, in a user program's environment: CPL 3, paging
//! on, the pages of [`layout`](super::layout) at the same linear addresses as on the host.

use super::forms::Mode;
use super::layout::{
    CODE, CODE_PAGE, Fault, FxImage, GS_BASE, Outcome, PAGE, READ_ONLY, Registers, SCRATCH,
    SCRATCH_SIZE,
};
use super::native::{COMPATIBLE_CODE, LONG_CODE, READ_ONLY_BYTE};
use teuthis_hypervisor::{
    memory::GuestMemory,
    processor::soft::{
        cpu::{Cpu, Exit, segment},
        decode::decode,
        forms::Forms,
        op::Op,
    },
};

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;
const ACCESSED_DIRTY: u64 = 0x60;

/// Physical addresses.
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const TABLES: u64 = 0x4000;
const RAM_SCRATCH: u64 = 0x10000;
const RAM_READ_ONLY: u64 = RAM_SCRATCH + SCRATCH_SIZE as u64;
const RAM_CODE: u64 = 0x20000;
const RAM_IMAGE: u64 = 0x21000;
/// Linear address of the page that register images pass through.
const IMAGE: u64 = 0x2200_0000;

/// Restarts of one repeated instruction after its slices; far above what the samples need.
const MAX_SLICES: usize = 64;

pub struct Soft {
    cpu: Cpu,
    forms: Forms,
    save: Op,
    restore: Op,
}

impl Soft {
    pub fn new(selectors: [u16; 6]) -> Self {
        let memory = GuestMemory::anonymous(1 << 20).expect("guest memory");
        let mut cpu = Cpu::new(memory);
        let all = PRESENT | WRITABLE | USER | ACCESSED_DIRTY;
        let put = |cpu: &Cpu, address: u64, value: u64| {
            cpu.memory.write(address, value).expect("page tables fit");
        };
        put(&cpu, PML4, PDPT | all);
        put(&cpu, PDPT, DIRECTORY | all);
        let pages = [
            (SCRATCH, RAM_SCRATCH, all),
            (SCRATCH + PAGE, RAM_SCRATCH + PAGE, all),
            (READ_ONLY, RAM_READ_ONLY, all & !WRITABLE),
            (CODE_PAGE, RAM_CODE, all),
            (IMAGE, RAM_IMAGE, all),
        ];
        for (linear, physical, bits) in pages {
            let region = (linear >> 21) & 0x1FF;
            // One table for each of the three regions, by bits 24 and 25 of the address.
            let table = TABLES + ((linear >> 24) & 3) * PAGE;
            put(&cpu, DIRECTORY + 8 * region, table | all);
            put(&cpu, table + 8 * ((linear >> 12) & 0x1FF), physical | bits);
        }
        cpu.memory
            .fill(RAM_READ_ONLY, PAGE, READ_ONLY_BYTE)
            .expect("fits");
        cpu.cr0 = 0x8005_0033; // PG AM WP NE ET MP PE
        cpu.cr4 = 0x6A0; // PAE PGE OSFXSR OSXMMEXCPT
        cpu.efer = 0xD01; // SCE LME LMA NXE
        cpu.cr3 = PML4;
        cpu.cpl = 3;
        cpu.segment_base[5] = GS_BASE;
        for (segment, selector) in cpu.segments.iter_mut().zip(selectors) {
            segment.selector = selector;
        }
        cpu.tr.limit = 0; // no I/O permission map
        cpu.update_domain();
        let op = |bytes: &[u8]| single(Mode::Long, bytes).expect("FXSAVE64 and FXRSTOR64 decode");
        let mut soft = Self {
            cpu,
            forms: Forms::default(),
            save: op(&[0x48, 0x0F, 0xAE, 0x03]),
            restore: op(&[0x48, 0x0F, 0xAE, 0x0B]),
        };
        soft.set_fx(&FxImage::initial());
        soft
    }

    /// `fxrstor64 [rbx]`.
    fn set_fx(&mut self, image: &FxImage) {
        self.cpu.long_code = true;
        self.cpu
            .memory
            .write_bytes(RAM_IMAGE, &image.0)
            .expect("fits");
        self.cpu.set_reg(Cpu::RBX, IMAGE);
        let restore = self.restore;
        (restore.run)(&mut self.cpu, &restore).expect("FXRSTOR64 works");
    }

    /// `fxsave64 [rbx]`.
    fn fx(&mut self) -> FxImage {
        self.cpu.long_code = true;
        let mut image = FxImage([0; 512]);
        self.cpu.set_reg(Cpu::RBX, IMAGE);
        let save = self.save;
        (save.run)(&mut self.cpu, &save).expect("FXSAVE64 works");
        self.cpu
            .memory
            .read_bytes(RAM_IMAGE, &mut image.0)
            .expect("fits");
        image
    }

    fn prepare(&mut self, mode: Mode, registers: &Registers, memory: &[u8; SCRATCH_SIZE]) {
        self.set_fx(&registers.fx);
        self.cpu
            .memory
            .write_bytes(RAM_SCRATCH, memory)
            .expect("fits");
        self.cpu.gpr[..16].copy_from_slice(&registers.gpr);
        self.cpu.gpr[usize::from(Cpu::RIP)] = CODE;
        self.cpu.set_rflags(registers.flags);
        self.cpu.unimplemented = false;
        self.cpu.long_code = mode == Mode::Long;
        self.cpu.segments[segment::CS].selector = match mode {
            Mode::Long => LONG_CODE,
            Mode::Compatible => COMPATIBLE_CODE,
        };
    }

    /// Executes `op` to its end, in as many slices as it takes. The address after it, or an
    /// exception.
    fn step(&mut self, op: &Op) -> Result<u64, Fault> {
        let here = CODE + u64::from(op.offset);
        for _ in 0..MAX_SLICES {
            match (op.run)(&mut self.cpu, op) {
                Ok(()) | Err(Exit::Resync) => return Ok(here + u64::from(op.length())),
                Err(Exit::Branch) if self.cpu.rip == here => {}
                Err(Exit::Branch | Exit::Entered) => return Ok(self.cpu.rip),
                Err(Exit::Exception) => {
                    let exception = self.cpu.exception;
                    return Err(Fault {
                        vector: exception.vector,
                        error: exception.error.unwrap_or(0),
                        address: if exception.vector == 14 {
                            exception.address
                        } else {
                            0
                        },
                    });
                }
                Err(Exit::Intercept) => panic!("an intercept at CPL 3"),
                Err(Exit::Stale) => panic!("a stale block, where there are no blocks"),
            }
        }
        Ok(here)
    }

    fn outcome(&mut self, rip: u64, fault: Option<Fault>) -> Outcome {
        let mut registers = Registers::initial();
        registers.gpr.copy_from_slice(&self.cpu.gpr[..16]);
        registers.flags = self.cpu.rflags();
        registers.rip = rip;
        registers.fx = self.fx();
        let mut memory = Box::new([0; SCRATCH_SIZE]);
        self.cpu
            .memory
            .read_bytes(RAM_SCRATCH, memory.as_mut_slice())
            .expect("fits");
        Outcome {
            registers,
            memory,
            fault,
        }
    }

    /// Runs `instruction` with `registers` and `memory`. `None` when it is not implemented.
    pub fn run(
        &mut self,
        mode: Mode,
        instruction: &[u8],
        registers: &Registers,
        memory: &[u8; SCRATCH_SIZE],
    ) -> Option<Outcome> {
        self.prepare(mode, registers, memory);
        let op = single(mode, instruction)?;
        let stepped = self.step(&op);
        if self.cpu.unimplemented {
            return None;
        }
        Some(self.outcome(stepped.unwrap_or(CODE), stepped.err()))
    }

    /// Runs a sequence of instructions without branches; also how many were executed.
    pub fn run_block(
        &mut self,
        bytes: &[u8],
        registers: &Registers,
        memory: &[u8; SCRATCH_SIZE],
    ) -> Option<(Outcome, usize)> {
        self.prepare(Mode::Long, registers, memory);
        let mut ops = Vec::new();
        decode(bytes, true, bytes.len(), &mut ops, &mut self.forms)?;
        // Behind the instructions is an op that ends the block.
        let (_, ops) = ops.split_last()?;
        let mut rip = CODE;
        for (executed, op) in ops.iter().enumerate() {
            match self.step(op) {
                Ok(next) => rip = next,
                Err(fault) => return Some((self.outcome(rip, Some(fault)), executed)),
            }
        }
        Some((self.outcome(rip, None), ops.len()))
    }

    /// Whether there is a handler for `instruction`.
    pub fn implements(mode: Mode, instruction: &[u8]) -> bool {
        single(mode, instruction).is_some_and(|op| op.run as usize != unimplemented_handler())
    }
}

/// What the decoder chooses for an instruction that no group has.
fn unimplemented_handler() -> usize {
    // VADDPS is beyond what this processor reports, and will stay so for long.
    single(Mode::Long, &[0xC5, 0xF0, 0x58, 0xC2]).map_or(0, |op| op.run as usize)
}

fn single(mode: Mode, instruction: &[u8]) -> Option<Op> {
    let mut ops = Vec::new();
    decode(
        instruction,
        mode == Mode::Long,
        1,
        &mut ops,
        &mut Forms::default(),
    )?;
    ops.first().copied()
}
