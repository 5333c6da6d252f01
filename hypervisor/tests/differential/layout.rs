//! The linear addresses that both processors see, and the registers that go in and come out.

/// Two writable pages, a read-only one, and nothing before or after.
pub const SCRATCH: u64 = 0x2000_1000;
pub const SCRATCH_PAGES: u64 = 2;
pub const SCRATCH_SIZE: usize = (SCRATCH_PAGES * PAGE) as usize;
pub const READ_ONLY: u64 = SCRATCH + SCRATCH_PAGES * PAGE;
pub const HOLE: u64 = READ_ONLY + PAGE;
pub const PAGE: u64 = 4096;
/// The page that the instruction runs on.
pub const CODE_PAGE: u64 = 0x2100_0000;
/// Address of the instruction.
pub const CODE: u64 = CODE_PAGE + 0x400;
/// Where branches go.
pub const TAKEN: u64 = CODE + 0x40;
/// Base of the GS segment.
pub const GS_BASE: u64 = 0x1_0000;

/// Offsets in an FXSAVE image.
pub mod fx {
    pub const FCW: usize = 0;
    pub const FSW: usize = 2;
    pub const FTW: usize = 4;
    pub const MXCSR: usize = 24;
    pub const ST: usize = 32;
    pub const XMM: usize = 160;
}

/// The image of FXSAVE64.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct FxImage(pub [u8; 512]);

impl FxImage {
    /// The state that a process starts with.
    pub fn initial() -> Self {
        let mut image = [0; 512];
        image[fx::FCW..fx::FCW + 2].copy_from_slice(&0x37Fu16.to_le_bytes());
        image[fx::MXCSR..fx::MXCSR + 4].copy_from_slice(&0x1F80u32.to_le_bytes());
        Self(image)
    }

    pub fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.0[offset], self.0[offset + 1]])
    }

    pub fn mxcsr(&self) -> u32 {
        u32::from(self.u16(fx::MXCSR)) | u32::from(self.u16(fx::MXCSR + 2)) << 16
    }

    /// ST(i): 10 bytes.
    pub fn st(&self, i: usize) -> &[u8] {
        &self.0[fx::ST + 16 * i..fx::ST + 16 * i + 10]
    }

    pub fn xmm(&self, i: usize) -> u128 {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&self.0[fx::XMM + 16 * i..fx::XMM + 16 * i + 16]);
        u128::from_le_bytes(bytes)
    }
}

/// Everything of a program's state that one instruction can see, but memory.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct Registers {
    pub fx: FxImage,
    pub gpr: [u64; 16],
    pub flags: u64,
    pub rip: u64,
}

impl Registers {
    pub fn initial() -> Self {
        Self {
            fx: FxImage::initial(),
            gpr: [0; 16],
            flags: 2,
            rip: CODE,
        }
    }
}

/// An exception as the processor reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub vector: u8,
    /// Error code, 0 for vectors without one.
    pub error: u32,
    /// CR2 of a page fault, otherwise 0.
    pub address: u64,
}

/// What one instruction did.
pub struct Outcome {
    pub registers: Registers,
    pub memory: Box<[u8; SCRATCH_SIZE]>,
    pub fault: Option<Fault>,
}
