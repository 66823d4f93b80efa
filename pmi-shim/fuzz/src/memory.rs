//! Counts what an input makes us allocate: a few KB from a peer must not cost many MB.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

fn grown(by: usize) {
    let live = LIVE.fetch_add(by, Relaxed) + by;
    PEAK.fetch_max(live, Relaxed);
}

// SAFETY: everything is the system's; the numbers beside it are of no account to it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(at, layout) }
    }
}

/// Runs this, and fails if it holds more at once than a few MB and some hundred bytes for each that came in.
pub fn modest(input: &[u8], what: impl FnOnce()) {
    modest_of(input, || {
        what();
        0
    });
}

/// The same, with room for so many ranks as it answers: a job may be told of in a few bytes.
pub fn modest_of(input: &[u8], what: impl FnOnce() -> usize) {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let ranks = what();
    let held = PEAK.load(Relaxed).saturating_sub(before);
    let most = (4 << 20) + 256 * input.len() + 64 * ranks;
    assert!(held <= most, "{} bytes of input cost {held} of memory", input.len());
}
