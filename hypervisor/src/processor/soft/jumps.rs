//! The shortcut from the virtual address of a branch target to its block, without a translation.

const LINES: usize = 4096;
const WAYS: usize = 4;

#[derive(Clone, Copy, Default)]
struct Jump {
    rip: u64,
    /// Generation of the translation and the mode; 0 matches nothing.
    tag: u32,
    /// Position of the block's first op.
    first: u32,
}

/// A cache line of the host.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Line([Jump; WAYS]);

/// Cache from a branch target to its block. A line serves 32 bytes of code; within it, a target is
/// first looked for at the place that its low bits give.
pub struct JumpCache {
    lines: Box<[Line; LINES]>,
    /// A set (one hashed bit per page) of the pages it may have entries of.
    pages: [u64; 64],
}

impl Default for JumpCache {
    fn default() -> Self {
        let lines = vec![Line::default(); LINES].into_boxed_slice();
        Self {
            // The length is LINES, so the conversion cannot fail; the other arm only satisfies types.
            lines: lines
                .try_into()
                .unwrap_or_else(|_| Box::new([Line::default(); LINES])),
            pages: [0; 64],
        }
    }
}

impl JumpCache {
    #[inline(always)]
    fn line(rip: u64) -> usize {
        ((rip >> 5) ^ (rip >> 17)) as usize & (LINES - 1)
    }

    #[inline(always)]
    fn way(rip: u64) -> usize {
        rip.wrapping_add(rip >> 3) as usize & (WAYS - 1)
    }

    fn page_bit(rip: u64) -> (usize, u64) {
        let page = rip >> 12;
        ((page >> 6) as usize & 63, 1 << (page & 63))
    }

    #[inline(always)]
    pub fn get(&self, rip: u64, tag: u32) -> Option<u32> {
        let ways = &self.lines[Self::line(rip)].0;
        (0..WAYS).find_map(|distance| {
            let jump = &ways[Self::way(rip) ^ distance];
            (jump.rip == rip && jump.tag == tag).then_some(jump.first)
        })
    }

    pub fn insert(&mut self, rip: u64, tag: u32, first: u32) {
        let ways = &mut self.lines[Self::line(rip)].0;
        let way = Self::way(rip);
        // The first choice is for the newest; the others move along.
        for distance in (1..WAYS).rev() {
            ways.swap(way ^ distance, way ^ (distance - 1));
        }
        ways[way] = Jump { rip, tag, first };
        let (word, bit) = Self::page_bit(rip);
        self.pages[word] |= bit;
    }

    pub fn forget(&mut self, rip: u64) {
        for jump in &mut self.lines[Self::line(rip)].0 {
            if jump.rip == rip {
                *jump = Jump::default();
            }
        }
    }

    pub fn forget_all(&mut self) {
        self.lines.fill(Line::default());
        self.pages = [0; 64];
    }

    /// Forgets the targets in the page of `1 << shift` bytes around `linear`.
    pub fn forget_page(&mut self, linear: u64, shift: u32) {
        let (word, bit) = Self::page_bit(linear);
        if shift == 12 && self.pages[word] & bit == 0 {
            return;
        }
        for jump in self.lines.iter_mut().flat_map(|line| &mut line.0) {
            if jump.rip >> shift == linear >> shift {
                *jump = Jump::default();
            }
        }
    }
}
