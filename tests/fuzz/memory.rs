//! How much memory is asked for at once.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

/// More than any case needs, at once; and what is refused, as it would be where there is no such memory.
const MOST: usize = 1 << 29;
const REFUSED: usize = 1 << 32;

struct Counted;

thread_local! {
    /// Tests run side by side, each in a thread.
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}
static SEED: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static ALLOCATOR: Counted = Counted;

/// Whether there is so much.
fn allowed(bytes: usize) -> bool {
    // None for what a thread asks for when it ends.
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(bytes)));
    if bytes >= REFUSED {
        eprintln!("case {}: asks for {bytes} bytes at once, which are refused", SEED.load(Ordering::Relaxed));
    }
    bytes < REFUSED
}

// SAFETY: System's own, or none.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if allowed(layout.size()) {
            return System.alloc(layout);
        }
        std::ptr::null_mut()
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if allowed(layout.size()) {
            return System.alloc_zeroed(layout);
        }
        std::ptr::null_mut()
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        if allowed(bytes) {
            return System.realloc(pointer, layout, bytes);
        }
        std::ptr::null_mut()
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        System.dealloc(pointer, layout);
    }
}

/// A case begins.
pub fn begin(seed: u64) {
    SEED.store(seed, Ordering::Relaxed);
    LARGEST.set(0);
}

/// The most that was asked for at once since then.
pub fn largest() -> usize {
    LARGEST.get()
}

/// The most that was asked for since then, if it is too much.
pub fn too_much() -> Option<usize> {
    Some(largest()).filter(|bytes| *bytes > MOST)
}
