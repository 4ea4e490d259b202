//! How fast the products of a LLaDA-shaped model are (d 768, FFN 2048, vocabulary 32000), beside candle's and beside what
//! the kernels reach when everything is in the first-level cache. Not part of the ordinary tests:
//!
//! ```text
//! cargo test --release --lib packed::speed -- --ignored --nocapture
//! ```

use std::time::Instant;

use candle_core::{Device, Tensor};

use super::kernel::{Block, Kernel, Sums};
use super::*;
use crate::models::nn::{Linear, Precision, Products};

/// `(outputs, inputs)`: queries and outputs; keys and values; gate and up; down; head.
const SHAPES: [(usize, usize); 5] = [(768, 768), (1536, 768), (4096, 768), (768, 2048), (32000, 768)];
const ROW_COUNTS: [usize; 5] = [1, 8, 64, 128, 512];
const FORMATS: [Format; 3] = [Format::F32, Format::Bf16, Format::Int8];

/// Best of several runs, about a tenth of a second in all, in seconds.
fn best(mut run: impl FnMut()) -> f64 {
    run();
    let (begun, mut best) = (Instant::now(), f64::INFINITY);
    while begun.elapsed().as_secs_f64() < 0.1 {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

/// GFLOP/s of all threads on a block in the first-level cache.
fn peak(format: Format) -> f64 {
    const TIMES: usize = 20_000;
    let (kernel, lines) = (Kernel::best(format), 4);
    let (x, w) = (vec![Line([0; LANES]); lines * ROWS], vec![Line([0; LANES]); lines * COLS]);
    let (ones, offsets) = ([1.0; COLS], [0; COLS]);
    let block = Block {
        first: false,
        x: &x,
        w: &w,
        rows: ROWS,
        x_scales: Some(&[1.0; ROWS]),
        w_scales: Some((&ones, &offsets)),
    };
    let seconds = best(|| {
        rayon::broadcast(|_| {
            let mut sums = Sums::ZERO;
            (0..TIMES).for_each(|_| kernel.add(std::hint::black_box(&block), &mut sums));
            std::hint::black_box(&sums);
        });
    });
    let products = TIMES * ROWS * COLS * lines * LANES * format.per_word() * rayon::current_num_threads();
    2e-9 * products as f64 / seconds
}

#[test]
#[ignore = "measures; takes half a minute"]
fn table() {
    let peaks = FORMATS.map(peak);
    println!("{} threads, {:?}", rayon::current_num_threads(), FORMATS.map(Kernel::best));
    println!("GFLOP/s             candle f32  packed f32        bf16        int8   unpack f32, ns a value");
    println!("in cache                        {:10.0}  {:10.0}  {:10.0}", peaks[0], peaks[1], peaks[2]);
    for (m, k) in [(128, 768), (128, 2048), (1024, 192)] {
        let x = vec![0.5; m * k];
        let pack = |format| best(|| drop(std::hint::black_box(Rows::pack(&x, k, Kernel::best(format)))));
        let packs = FORMATS.map(|format| format!("{:10.3}", pack(format) * 1e9 / (m * k) as f64));
        println!("{:30}  {}", format!("rows {m}×{k}, ns a value"), packs.join("  "));
    }
    for (n, k) in SHAPES {
        let weight = Tensor::randn(0f32, 1.0, (n, k), &Device::Cpu).unwrap();
        let layer = |format| Linear::new(&weight, None, Products { precision: Precision::Exact, format }).unwrap();
        let layers = [None, Some(FORMATS[0]), Some(FORMATS[1]), Some(FORMATS[2])].map(layer);
        let flat = weight.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let panels = Panels::pack(&flat, n, k, Format::F32).unwrap();
        let unpack = best(|| drop(std::hint::black_box(panels.unpack(0..n)))) * 1e9 / (n * k) as f64;
        for m in ROW_COUNTS {
            let x = Tensor::randn(0f32, 1.0, (m, k), &Device::Cpu).unwrap();
            let rate = |layer: &Linear| 2e-9 * (m * n * k) as f64 / best(|| drop(layer.forward(&x).unwrap()));
            let rates = layers.each_ref().map(|layer| format!("{:10.0}", rate(layer)));
            println!("{:18}  {}   {unpack:.2}", format!("{m}×{n}×{k}"), rates.join("  "));
        }
    }
}
