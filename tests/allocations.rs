//! What a tick allocates once it is warm: counted on the threads of one pool, so that tests beside it do not count.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use candle_core::Device;
use lacuna::diffusion::canvas::Canvas;
use lacuna::diffusion::denoise::Denoiser;
use lacuna::diffusion::params::Fidelity;
use lacuna::diffusion::rng::Stream;
use lacuna::models::Model;
use lacuna::starter::model;
use mimalloc::MiMalloc;

use crate::properties::starter::{image, text};

/// The server's allocator, counting.
pub(crate) struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

fn count(bytes: usize) {
    // A thread that is being torn down is not one that counts.
    if COUNTED.try_with(Cell::get).unwrap_or(false) {
        ALLOCATIONS.fetch_add(1, Relaxed);
        BYTES.fetch_add(bytes as u64, Relaxed);
    }
}

// SAFETY: everything is passed on to an allocator that keeps the contract; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as the caller promises.
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as the caller promises.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: as the caller promises.
        unsafe { MiMalloc.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { MiMalloc.dealloc(block, layout) };
    }
}

/// Allocations and bytes of the second step of `n` canvases like this one; `None` if they end before.
fn warm_step(model: &Model, canvas: &Canvas, n: usize) -> Option<(u64, u64)> {
    let mark = |_| COUNTED.set(true);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).start_handler(mark).build().unwrap();
    pool.install(|| {
        let mut canvases = vec![canvas.clone(); n];
        let mut denoiser = Denoiser::default();
        let mut step = || {
            let mut all: Vec<&mut Canvas> = canvases.iter_mut().collect();
            let before = (ALLOCATIONS.load(Relaxed), BYTES.load(Relaxed));
            denoiser.step(&*model.backbone, &mut all).unwrap();
            let after = (ALLOCATIONS.load(Relaxed), BYTES.load(Relaxed));
            canvases[0].finish().is_none().then_some((after.0 - before.0, after.1 - before.1))
        };
        step().and_then(|_| step())
    })
}

#[test]
fn a_warm_tick_allocates_a_few_times_an_operation_and_canvas() {
    let model = model::load(&Device::Cpu).unwrap();
    let counts = |make: &dyn Fn(&mut Stream) -> Canvas| {
        let of = |case| {
            let canvas = make(&mut Stream::new(5, case));
            let [one, eight, many] = [1, 8, 32].map(|n| warm_step(&model, &canvas, n));
            Some([one?, eight?, many?])
        };
        (0..100).find_map(of).unwrap()
    };
    // Operations of the six layers, and per canvas attention's rows and heads; measured 560 + 151 n and 570 + 391 n.
    let texts = counts(&|s| text(&model, s, &[Fidelity::Exact]));
    let images = counts(&|s| image(&model, s));
    for (counts, fixed, each) in [(texts, 700, 200), (images, 700, 500)] {
        println!("allocations and bytes of a tick with 1, 8 and 32 canvases: {counts:?}");
        for ((allocations, _), n) in counts.into_iter().zip([1, 8, 32]) {
            assert!(allocations <= fixed + each * n, "{n} canvases: {allocations}");
        }
    }
}
