//! Versions are exchanged under load: nothing fails, nothing is mixed, and every completion is what its recorded
//! version gives when it is asked again, alone.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use lacuna::adapters::{Adapter, Routes, VersionId};
use lacuna::diffusion::params::{Fidelity, ImageParams, ImageSampler, Schedule, TextParams};
use lacuna::diffusion::rng::Stream;
use lacuna::engine::job::{Priority, Prompt, Task};
use lacuna::engine::{Engine, Event, Finished, Limits, Request, Serving};
use lacuna::models::Model;
use lacuna::models::lora::{Lora, Pair, Target};
use lacuna::starter::{model, scenes, words};

use super::exactness::quiet;

const SWAPS: usize = 200;

fn version(model: &Model, number: u64) -> Arc<Adapter> {
    let config = model.backbone.adaptable().unwrap();
    let mut pairs = BTreeMap::new();
    for layer in 0..config.n_layers {
        let (out, width) = Target::V.shape(config);
        let a = Tensor::randn(0f32, 0.2, (4, width), &Device::Cpu).unwrap();
        let b = Tensor::randn(0f32, 0.2, (out, 4), &Device::Cpu).unwrap();
        pairs.insert((layer, Target::V), Pair { a, b });
    }
    let lora = Some(Arc::new(Lora::new(config, 1.0, pairs).unwrap()));
    Arc::new(Adapter { id: VersionId::new("main", number).unwrap(), lora, manifest: None })
}

fn picture(steps: usize, sampler: ImageSampler) -> ImageParams {
    ImageParams {
        steps,
        guidance_scale: 1.0,
        schedule: Schedule::Cosine,
        temperature: 1.0,
        token_temperature: None,
        sampler,
        grid: (8, 8),
        initial_codes: vec![],
        preview_every: 0,
    }
}

fn request(s: &mut Stream, adapter: Option<VersionId>, seed: u64) -> Request {
    let (prompt, task) = if s.chance(0.5) {
        let fidelity = [Fidelity::Exact, Fidelity::Prefix, Fidelity::Dual][s.below(3)];
        let params = TextParams { steps: 4, block_length: 4, temperature: 1.0, fidelity, ..quiet() };
        (words::sample_mixed(s, words::Split::Train).question, Task::Text(params))
    } else {
        (scenes::sample_any(s, scenes::Split::Train).caption, Task::Image(picture(4, ImageSampler::Emerge)))
    };
    Request {
        prompt: Prompt::Text(prompt),
        negative_prompt: None,
        task,
        n: 2,
        seed,
        priority: Priority::Interactive,
        deadline: None,
        adapter,
        subject: None,
        follow: false,
    }
}

/// The version of a request and what came of it.
async fn complete(engine: &Engine, request: Request) -> (VersionId, Vec<Finished>) {
    let mut ticket = engine.submit(request).unwrap();
    let version = ticket.assigned.adapter.id.clone();
    let mut finished = Vec::new();
    while let Some(event) = ticket.next().await {
        match event {
            Event::Finished(one) => finished.push(*one),
            Event::Failed(error) => panic!("a request failed: {error}"),
            _ => {}
        }
    }
    finished.sort_by_key(|one| one.index);
    (version, finished)
}

fn bits(finished: &[Finished]) -> Vec<(Vec<u32>, Vec<i32>, Vec<u32>)> {
    let of = |one: &Finished| {
        (one.tokens.clone(), one.commit_steps.clone(), one.logprobs.iter().map(|l| l.to_bits()).collect())
    };
    finished.iter().map(of).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_swaps_under_load_fail_and_mix_nothing() {
    let model = model::load(&Device::Cpu).unwrap();
    let versions: Vec<Arc<Adapter>> = (1..=3).map(|number| version(&model, number)).collect();
    let engine =
        Engine::start(model, Limits { max_queue: 256, max_rows: 4096, max_running: 64, max_cache_bytes: 1 << 20 })
            .unwrap();
    let mut routes = Routes::default();
    let mut running = tokio::task::JoinSet::new();
    let mut results = Vec::new();
    for swap in 0..SWAPS {
        // A request before and after every exchange, most of them still running at the next ones.
        let seed = swap as u64;
        let asking = engine.clone();
        running.spawn(async move {
            let asked = request(&mut Stream::new(0x5A, seed), None, seed);
            (seed, complete(&asking, asked).await)
        });
        tokio::task::yield_now().await;
        let next = &versions[swap % 3];
        routes = match swap % 5 {
            // Now and then only a share of the requests gets it.
            4 if routes.active() != &next.id => routes.without_canary().with_canary(next.id.clone(), 0.5).unwrap(),
            _ => routes.with_active(next.id.clone()),
        };
        engine.publish(Serving::new(routes.clone(), versions.iter().cloned()).unwrap());
        while running.len() > 12 {
            results.push(running.join_next().await.unwrap().unwrap());
        }
    }
    while let Some(done) = running.join_next().await {
        results.push(done.unwrap());
    }
    assert_eq!(results.len(), SWAPS);
    let used: HashSet<VersionId> = results.iter().map(|(_, (version, _))| version.clone()).collect();
    assert!(used.len() >= 3, "{used:?}");
    for (seed, (version, finished)) in &results {
        let alone = request(&mut Stream::new(0x5A, *seed), Some(version.clone()), *seed);
        let (pinned, again) = complete(&engine, alone).await;
        assert_eq!((&pinned, finished.len()), (version, 2));
        assert_eq!(bits(&again), bits(finished), "request {seed} by {version}");
    }
}

#[tokio::test]
async fn an_exchange_costs_no_tick() {
    let model = model::load(&Device::Cpu).unwrap();
    let versions: Vec<Arc<Adapter>> = (1..=3).map(|number| version(&model, number)).collect();
    let limits = Limits { max_queue: 8, max_rows: 4096, max_running: 8, max_cache_bytes: 0 };
    let engine = Engine::start(model, limits).unwrap();
    let ask = |steps| {
        let task = Task::Image(picture(steps, ImageSampler::Maskgit));
        let request = Request { n: 1, task, follow: true, ..request(&mut Stream::new(1, 1), None, 1) };
        engine.submit(request).unwrap()
    };
    let (mut swaps, mut in_flight) = (0, ask(32));
    let mut last = in_flight.assigned.adapter.id.clone();
    while let Some(event) = in_flight.next().await {
        match event {
            Event::Step { .. } => {
                last = versions[swaps % 3].id.clone();
                let routes = Routes::default().with_active(last.clone());
                engine.publish(Serving::new(routes, versions.iter().cloned()).unwrap());
                swaps += 1;
            }
            Event::Failed(error) => panic!("the request failed: {error}"),
            _ => {}
        }
    }
    assert!(swaps > 1, "{swaps}");
    // The next request has what was published last, and there were as many ticks as the two have steps: none was repeated
    // or spent on the exchanges. (A tick is counted after its events are sent: the last one may not be.)
    let mut next = ask(1);
    assert_eq!(next.assigned.adapter.id, last);
    while next.next().await.is_some() {}
    let counters = engine.counters();
    assert_eq!(counters.ticks, counters.steps);
    assert!((32..=33).contains(&counters.ticks), "{counters:?}");
}

#[tokio::test]
async fn a_version_that_is_not_loaded_is_refused_by_name() {
    let engine = Engine::start(
        model::load(&Device::Cpu).unwrap(),
        Limits { max_queue: 8, max_rows: 4096, max_running: 8, max_cache_bytes: 1 << 20 },
    );
    let engine = engine.unwrap();
    let asked = request(&mut Stream::new(1, 1), Some("main@9".parse().unwrap()), 1);
    let error = engine.submit(asked).err().unwrap().to_string();
    assert!(error.contains("main@9") && error.contains("base@0"), "{error}");
    assert!(Serving::new(Routes::default().with_active("main@9".parse().unwrap()), []).is_err());
}
