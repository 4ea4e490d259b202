//! Every run of Fast-dLLM with its caches: the official tokens, commits, forwards and rows, alone and mixed, with what is
//! kept and without any room to keep it.

use lacuna::diffusion::cache::Caches;
use lacuna::diffusion::denoise::Denoiser;
use lacuna::diffusion::params::Fidelity;

use super::runs::{Run, assert_official, check};
use super::samplers::{fast_dllm, unmasked};

const CACHED: [Fidelity; 2] = [Fidelity::Prefix, Fidelity::Dual];

#[test]
fn cached_runs_of_fast_dllm_are_the_official_ones() {
    for name in ["llada", "llada_gqa_tied"] {
        let of = |fidelity| {
            let runs = fast_dllm(name, fidelity);
            assert_eq!(runs.len(), 8);
            runs
        };
        let runs: Vec<Run> = [Fidelity::Exact, Fidelity::Prefix, Fidelity::Dual].into_iter().flat_map(of).collect();
        check(&unmasked(name), &runs);
    }
}

#[test]
fn a_cache_that_is_never_held_is_computed_again_every_time() {
    let model = unmasked("llada");
    for run in CACHED.into_iter().flat_map(|fidelity| fast_dllm("llada", fidelity)) {
        let (mut denoiser, mut canvas) = (Denoiser::new(Caches::new(0)), run.canvas(&model, 0));
        while canvas.finish().is_none() {
            denoiser.step(&*model.backbone, &mut [&mut canvas]).unwrap();
            assert_eq!(denoiser.caches.bytes(), 0);
        }
        assert_official(&run, &canvas);
        assert!(canvas.positions_evaluated() > run.rows.unwrap());
    }
}
