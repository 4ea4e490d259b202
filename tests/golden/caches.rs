//! Every run of Fast-dLLM with its caches: the official tokens, commits, forwards and rows, alone and mixed, with what is
//! kept and without any room to keep it.

use lacuna::diffusion::cache::Caches;
use lacuna::diffusion::denoise::Denoiser;
use lacuna::diffusion::params::Fidelity;

use super::model;
use super::runs::{assert_official, check};
use super::samplers::{Unmasked, fast_dllm};

const CACHED: [Fidelity; 2] = [Fidelity::Prefix, Fidelity::Dual];

#[test]
fn cached_runs_of_fast_dllm_are_the_official_ones() {
    for name in ["llada", "llada_gqa_tied"] {
        let model = model(name);
        let backbone = Unmasked(&*model.backbone);
        for fidelity in CACHED {
            let (mut runs, costs) = fast_dllm(name, &model, fidelity);
            assert_eq!(runs.len(), 8);
            for (run, (forwards, rows)) in runs.iter_mut().zip(costs) {
                lacuna::diffusion::denoise::complete(&backbone, std::slice::from_mut(&mut run.canvas), 1000).unwrap();
                let evaluated = (run.canvas.forwards(), run.canvas.positions_evaluated());
                assert_eq!(evaluated, (forwards, rows), "{}, {fidelity:?}", run.label);
            }
        }
        let all = || [Fidelity::Exact, Fidelity::Prefix, Fidelity::Dual].map(|f| fast_dllm(name, &model, f).0);
        check(&backbone, || all().into_iter().flatten().collect());
    }
}

#[test]
fn a_cache_that_is_never_held_is_computed_again_every_time() {
    let model = model("llada");
    let backbone = Unmasked(&*model.backbone);
    for fidelity in CACHED {
        let (runs, costs) = fast_dllm("llada", &model, fidelity);
        for (mut run, (forwards, rows)) in runs.into_iter().zip(costs) {
            let mut denoiser = Denoiser::new(Caches::new(0));
            while run.canvas.finish().is_none() {
                denoiser.step(&backbone, &mut [&mut run.canvas]).unwrap();
                assert_eq!(denoiser.caches.bytes(), 0);
            }
            assert_official(&run);
            assert_eq!(run.canvas.forwards(), forwards);
            assert!(run.canvas.positions_evaluated() > rows);
        }
    }
}
