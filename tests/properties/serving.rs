//! The engine through its handle: exact under concurrency, honest at its limits, silent for nobody.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use lacuna::diffusion::Canvas;
use lacuna::diffusion::denoise::complete;
use lacuna::diffusion::params::{FinishReason, ImageParams, ImageSampler, Schedule, TextParams, TextSampler};
use lacuna::diffusion::rng::{Stream, completion_seed};
use lacuna::engine::job::{Priority, Prompt, Task, TemplatePart};
use lacuna::engine::{Engine, EngineError, Event, Finished, Limits, Request, Ticket};
use lacuna::models::{Backbone, Model};

use super::exactness::{image_params, quiet, text_params, words};
use super::fake::{CODES, EOS, Gauge, Hash, Tensors, model};

fn limits() -> Limits {
    Limits { max_queue: 64, max_rows: 150, max_running: 8, max_cache_bytes: 1 << 20 }
}

fn engine(backbone: impl Backbone + 'static, limits: Limits) -> Engine {
    Engine::start(model(backbone), limits).unwrap()
}

/// An engine whose forwards can be held and counted.
fn gauged(limits: Limits) -> (Engine, Arc<Gauge>) {
    let backbone = Hash::new();
    let gauge = Arc::clone(&backbone.gauge);
    (engine(backbone, limits), gauge)
}

fn request(prompt: &str, task: Task) -> Request {
    Request {
        prompt: Prompt::Text(prompt.to_owned()),
        negative_prompt: None,
        task,
        n: 1,
        seed: 1,
        priority: Priority::Interactive,
        deadline: None,
        adapter: None,
        subject: None,
        follow: true,
    }
}

fn text(params: TextParams) -> Request {
    request("ab", Task::Text(params))
}

fn image(steps: usize) -> ImageParams {
    ImageParams {
        steps,
        guidance_scale: 0.0,
        schedule: Schedule::Cosine,
        temperature: 1.0,
        token_temperature: None,
        sampler: ImageSampler::Maskgit,
        grid: (4, 4),
        initial_codes: Vec::new(),
        preview_every: 1,
    }
}

async fn events(mut ticket: Ticket) -> Vec<Event> {
    let mut all = Vec::new();
    while let Some(event) = ticket.next().await {
        all.push(event);
    }
    all
}

fn finished(events: &[Event]) -> Vec<&Finished> {
    events.iter().filter_map(|e| if let Event::Finished(f) = e { Some(&**f) } else { None }).collect()
}

async fn run(engine: &Engine, request: Request) -> Vec<Event> {
    let events = events(engine.submit(request).unwrap()).await;
    assert!(matches!(events.first(), Some(Event::Queued { .. })));
    assert!(matches!(events.last(), Some(Event::Done)), "{:?}", events.last());
    events
}

fn random_request(s: &mut Stream) -> Request {
    let task = if s.chance(0.6) { Task::Text(text_params(s)) } else { Task::Image(image_params(s)) };
    let prompt = Prompt::Ids(words(s, 8));
    Request {
        prompt,
        negative_prompt: s.chance(0.2).then(|| Prompt::Ids(words(s, 5))),
        task,
        n: 1 + s.below(3) as u32,
        seed: s.below(4) as u64,
        priority: [Priority::Interactive, Priority::Batch, Priority::Rollout][s.below(3)],
        deadline: None,
        adapter: None,
        subject: None,
        follow: s.chance(0.7),
    }
}

/// What the request gives without an engine, completion by completion.
fn reference(model: &Model, request: &Request) -> Vec<(Vec<u32>, Vec<i32>)> {
    let spec = model.backbone.spec();
    let ids = |prompt: &Prompt| match prompt {
        Prompt::Ids(ids) => ids.clone(),
        other => panic!("{other:?} is made of words"),
    };
    let prompt = ids(&request.prompt);
    let negative = request.negative_prompt.as_ref().map(ids);
    let one = |index| {
        let seed = completion_seed(request.seed, index);
        let mut canvas = match &request.task {
            Task::Text(p) => {
                let prefix = prompt.iter().copied().map(Some).collect();
                Canvas::text(spec, prefix, negative.as_deref(), p, seed).unwrap()
            }
            Task::Image(p) => {
                let frame = model.layout.image_frame(&prompt);
                let empty = model.layout.image_frame(negative.as_deref().unwrap_or_default());
                Canvas::image(spec, frame, empty, p, seed).unwrap()
            }
        };
        complete(model.backbone.as_ref(), std::slice::from_mut(&mut canvas), 1000).unwrap();
        (canvas.tokens(), canvas.commit_steps().to_vec())
    };
    (0..request.n).map(one).collect()
}

async fn concurrent(backbone: impl Backbone + 'static, limits: Limits, seed: u64, requests: usize) {
    let model = model(backbone);
    let engine = Engine::start(model.clone(), limits).unwrap();
    let mut s = Stream::new(seed, 0);
    let mut running = Vec::new();
    for _ in 0..requests {
        let request = random_request(&mut s);
        let expected = reference(&model, &request);
        let ticket = engine.submit(request.clone()).unwrap();
        let id = (ticket.group, ticket.completions.clone());
        let task = tokio::spawn(events(ticket));
        running.push((request, expected, id, task));
        tokio::task::yield_now().await;
    }
    for (request, expected, (_, completions), task) in running {
        let events = task.await.unwrap();
        let mut done = finished(&events);
        done.sort_by_key(|f| f.index);
        let actual: Vec<_> = done.iter().map(|f| (f.tokens.clone(), f.commit_steps.clone())).collect();
        assert_eq!(actual, expected, "{request:?}");
        assert_eq!(done.iter().map(|f| f.id).collect::<Vec<_>>(), completions);
        if request.follow {
            follow(&events, request.n);
        } else {
            only_ends(&events, request.n);
        }
    }
    engine.drain().await;
    let status = engine.status();
    assert_eq!((status.queued, status.running, status.healthy), (0, 0, true));
}

/// What a client that only hears events knows at the end is what the completion says.
fn follow(events: &[Event], n: u32) {
    let mut known: HashMap<u32, HashMap<usize, u32>> = HashMap::new();
    let mut texts: HashMap<u32, String> = HashMap::new();
    let mut ended = 0;
    for event in events {
        match event {
            Event::Step { index, edits, committed, .. } => {
                let known = known.entry(*index).or_default();
                edits.iter().for_each(|e| assert_eq!(known.insert(e.position, e.token), None));
                texts.entry(*index).or_default().push_str(committed);
            }
            Event::Finished(f) => {
                ended += 1;
                let known = &known[&f.index];
                for (i, (token, step)) in f.tokens.iter().zip(&f.commit_steps).enumerate() {
                    assert!(*step < 0 || known[&i] == *token);
                }
                assert_eq!(texts.remove(&f.index).unwrap_or_default(), f.text);
            }
            _ => {}
        }
    }
    assert_eq!(ended, n);
}

/// A client that does not follow its request is woken by what it waits for alone.
fn only_ends(events: &[Event], n: u32) {
    let (last, completions) = events.split_last().unwrap();
    assert!(matches!(last, Event::Done), "{last:?}");
    assert!(completions.iter().all(|event| matches!(event, Event::Finished(_))), "{completions:?}");
    assert_eq!(completions.len(), n as usize);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_load_gives_the_tokens_of_each_alone_on_hashes() {
    for seed in 0..8 {
        let max_rows = [130, 150, 400][seed as usize % 3];
        let limits = Limits { max_queue: 256, max_rows, max_running: 1 + seed as usize, ..limits() };
        concurrent(Hash::new(), limits, seed, 25).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_load_gives_the_tokens_of_each_alone_on_tensors() {
    for seed in 100..104 {
        let limits = Limits { max_queue: 256, max_rows: 200, max_running: 5, ..limits() };
        concurrent(Tensors::new(), limits, seed, 20).await;
    }
}

#[tokio::test]
async fn a_text_streams_its_edits_and_append_only_text() {
    let engine = engine(Hash::new(), limits());
    let params = TextParams { max_tokens: 16, steps: 16, block_length: 4, stop_at_eos: false, ..quiet() };
    let events = run(&engine, text(params)).await;
    follow(&events, 1);
    let blocks: Vec<u32> =
        events.iter().filter_map(|e| if let Event::Block { block, .. } = e { Some(*block) } else { None }).collect();
    assert_eq!(blocks, [0, 1, 2, 3]);
    let done = finished(&events)[0];
    assert_eq!(done.prompt_ids, [258, 97, 98]);
    assert_eq!((done.steps, done.positions_evaluated), (16, 16 * 19));
    assert_eq!(done.tokens.len(), 16);
    assert!(done.logprobs.iter().all(|l| *l < 0.0));
}

#[tokio::test]
async fn an_image_streams_previews_and_renders() {
    let engine = engine(Hash::new(), limits());
    let events = run(&engine, request("a cat", Task::Image(image(4)))).await;
    let previews: Vec<usize> = events
        .iter()
        .filter_map(|e| if let Event::Preview { codes, .. } = e { Some(codes.iter().flatten().count()) } else { None })
        .collect();
    assert_eq!(previews, [2, 5, 10]);
    let done = finished(&events)[0];
    assert_eq!((done.tokens.len(), done.finish_reason), (16, FinishReason::Stop));
    let codes: Vec<Option<u32>> = done.tokens.iter().copied().map(Some).collect();
    assert_eq!(engine.render(&codes, (4, 4)).unwrap().dimensions(), (8, 8));
    let masked = engine.render(&[&[None], &codes[1..]].concat(), (4, 4)).unwrap();
    assert_eq!((masked.get_pixel(1, 1).0, masked.get_pixel(2, 0).0), ([128; 3], [codes[1].unwrap() as u8; 3]));
    assert_eq!(engine.encode_image(&engine.render(&codes, (4, 4)).unwrap(), (4, 4)).unwrap(), done.tokens);
}

#[tokio::test]
async fn a_template_keeps_what_is_given() {
    let engine = engine(Hash::new(), limits());
    let parts = vec![TemplatePart::Text("He".to_owned()), TemplatePart::Hole(3), TemplatePart::Text("lo".to_owned())];
    let request = Request { prompt: Prompt::Template(parts), ..text(quiet()) };
    let events = run(&engine, request).await;
    follow(&events, 1);
    let done = finished(&events)[0];
    assert_eq!(done.tokens.len(), 7);
    assert_eq!((&done.tokens[..2], &done.tokens[5..]), (&[72, 101][..], &[108, 111][..]));
    assert_eq!(done.commit_steps.iter().filter(|&&s| s < 0).count(), 4);
    assert!(done.text.starts_with("He") && done.text.ends_with("lo"), "{}", done.text);
}

#[tokio::test]
async fn a_stop_string_ends_the_text_before_it() {
    let engine = engine(Hash::new(), limits());
    let params =
        TextParams { max_tokens: 24, steps: 24, block_length: 1, temperature: 1.0, stop_at_eos: false, ..quiet() };
    let mut cut = 0;
    for seed in 0..30 {
        let plain = Request { seed, ..text(params.clone()) };
        let whole = run(&engine, plain.clone()).await;
        let whole = finished(&whole)[0].clone();
        let printable = whole.tokens.iter().position(|t| (33..127).contains(t));
        let Some(at) = printable.filter(|&at| at < 20 && !whole.tokens[..at].contains(&EOS)) else { continue };
        let stop = String::from(whole.tokens[at] as u8 as char);
        let stopped = Task::Text(TextParams { stop: vec!["never there".to_owned(), stop.clone()], ..params.clone() });
        let events = run(&engine, Request { task: stopped, ..plain }).await;
        follow(&events, 1);
        let done = finished(&events)[0];
        let before = whole.text.find(&stop).unwrap();
        assert_eq!(done.text, whole.text[..before]);
        assert_eq!(done.finish_reason, FinishReason::Stop);
        assert_eq!(done.tokens, whole.tokens[..done.tokens.len()]);
        assert!(done.steps <= 20);
        cut += 1;
    }
    assert!(cut > 10, "{cut}");
}

#[tokio::test]
async fn a_passed_deadline_commits_the_rest_in_one_step() {
    let engine = engine(Hash::new(), limits());
    let params = TextParams { max_tokens: 64, steps: 64, block_length: 8, stop_at_eos: false, ..quiet() };
    let request = Request { deadline: Some(Duration::ZERO), ..text(params) };
    let events = run(&engine, request).await;
    let done = finished(&events)[0];
    assert_eq!((done.finish_reason, done.steps, done.tokens.len()), (FinishReason::Deadline, 1, 64));
}

#[tokio::test]
async fn what_cannot_be_served_is_refused_with_the_field_and_the_numbers() {
    let engine = engine(Hash::new(), Limits { max_rows: 40, ..limits() });
    let refuse = |request: Request| match engine.submit(request) {
        Err(EngineError::Invalid { field, message }) => (field, message),
        Err(e) => panic!("{e}"),
        Ok(_) => panic!("admitted"),
    };
    let params = TextParams { max_tokens: 64, steps: 8, block_length: 64, ..quiet() };
    let (field, message) = refuse(text(params));
    assert_eq!(field, "max_tokens");
    assert!(message.contains("67 rows") && message.contains("at most 40"), "{message}");
    assert_eq!(refuse(text(TextParams { steps: 7, block_length: 4, ..quiet() })).0, "steps");
    assert_eq!(refuse(Request { n: 0, ..text(quiet()) }).0, "n");
    assert_eq!(refuse(Request { n: 65, ..text(quiet()) }).0, "n");
    assert_eq!(refuse(request("x", Task::Image(ImageParams { grid: (0, 4), ..image(4) }))).0, "grid");
    let codes = vec![Some(CODES.len() as u32); 15].into_iter().chain([None]).collect();
    assert_eq!(refuse(request("x", Task::Image(ImageParams { initial_codes: codes, ..image(4) }))).0, "initial_codes");
    let hole = Prompt::Template(vec![TemplatePart::Hole(usize::MAX)]);
    assert_eq!(refuse(Request { prompt: hole, ..text(quiet()) }).0, "template");
    assert_eq!(engine.status().queued, 0);
}

#[tokio::test]
async fn a_full_queue_refuses_and_recovers() {
    let (engine, gauge) = gauged(Limits { max_queue: 4, ..limits() });
    gauge.hold();
    let first = engine.submit(text(quiet())).unwrap();
    gauge.wait_until_held();
    let second = engine.submit(Request { n: 4, ..text(quiet()) }).unwrap();
    let refused = engine.submit(text(quiet())).err().unwrap();
    assert!(matches!(refused, EngineError::Full { limit: 4, retry_after_s: 1.. }), "{refused}");
    assert_eq!((engine.status().queued, engine.status().running), (4, 1));
    gauge.release();
    assert!(matches!(events(first).await.last(), Some(Event::Done)));
    let events = events(second).await;
    assert!(matches!(events[0], Event::Queued { ahead: 1 }));
    assert_eq!(finished(&events).len(), 4);
    run(&engine, text(quiet())).await;
}

#[tokio::test]
async fn rollouts_and_batches_leave_a_quarter_of_the_queue_to_people() {
    let (engine, gauge) = gauged(Limits { max_queue: 8, ..limits() });
    gauge.hold();
    let first = engine.submit(text(quiet())).unwrap();
    gauge.wait_until_held();
    let of = |priority, n| Request { priority, n, ..text(quiet()) };
    // What would fit an empty queue is admitted to one.
    let flood = engine.submit(of(Priority::Batch, 6)).unwrap();
    for priority in [Priority::Batch, Priority::Rollout] {
        let refused = engine.submit(of(priority, 1)).err().unwrap();
        assert!(matches!(refused, EngineError::Full { limit: 6, .. }), "{refused}");
    }
    let person = engine.submit(of(Priority::Interactive, 2)).unwrap();
    let refused = engine.submit(of(Priority::Interactive, 1)).err().unwrap();
    assert!(matches!(refused, EngineError::Full { limit: 8, .. }), "{refused}");
    gauge.release();
    for ticket in [first, flood, person] {
        assert!(matches!(events(ticket).await.last(), Some(Event::Done)));
    }
    let whole = engine.submit(of(Priority::Rollout, 8)).unwrap();
    assert_eq!(finished(&events(whole).await).len(), 8);
}

#[tokio::test]
async fn a_client_that_left_is_dropped_at_the_next_step() {
    let (engine, gauge) = gauged(limits());
    gauge.hold();
    let params = TextParams { max_tokens: 64, steps: 64, block_length: 64, stop_at_eos: false, ..quiet() };
    let gone = engine.submit(text(params)).unwrap();
    gauge.wait_until_held();
    let stays = engine.submit(text(quiet())).unwrap();
    drop(gone);
    gauge.release();
    events(stays).await;
    engine.drain().await;
    let counters = engine.counters();
    assert_eq!((counters.disconnects, counters.texts), (1, 1));
    assert!(counters.steps <= 1 + 8, "{counters:?}");
}

#[tokio::test]
async fn a_slow_client_misses_no_edit_and_no_end() {
    let engine = engine(Hash::new(), limits());
    let params = TextParams { max_tokens: 150, steps: 150, block_length: 1, stop_at_eos: false, ..quiet() };
    let engine = Engine::start(model(Hash::new()), Limits { max_rows: 200, ..engine.limits().clone() }).unwrap();
    let slow = engine.submit(Request { n: 3, ..text(params) }).unwrap();
    // Nothing is read before all is over.
    engine.drain().await;
    let events = events(slow).await;
    let steps = events.iter().filter(|e| matches!(e, Event::Step { .. })).count();
    assert!(steps < 3 * 150 / 2, "{steps}");
    let done = finished(&events);
    assert_eq!(done.len(), 3);
    assert!(done.iter().all(|f| f.tokens.len() == 150 && !f.text.is_empty()));
    assert!(matches!(events.last(), Some(Event::Done)));
    for f in done {
        let text: String = events
            .iter()
            .filter_map(|e| match e {
                Event::Step { index, committed, .. } if *index == f.index => Some(committed.as_str()),
                _ => None,
            })
            .collect();
        assert_eq!(text, f.text);
    }
}

#[tokio::test]
async fn a_failed_forward_fails_its_requests_and_nothing_else() {
    let (engine, gauge) = gauged(limits());
    gauge.fail(1);
    let events = events(engine.submit(Request { n: 2, ..text(quiet()) }).unwrap()).await;
    let Some(Event::Failed(EngineError::Device(cause))) = events.last() else { panic!("{events:?}") };
    assert!(cause.contains("broken on purpose"));
    assert!(!engine.status().healthy);
    run(&engine, text(quiet())).await;
    let status = engine.status();
    assert_eq!((status.healthy, status.queued, status.running), (true, 0, 0));
    assert_eq!(engine.counters().failures, 1);
}

#[tokio::test]
async fn absurd_guidance_fails_only_its_own_request() {
    let (engine, gauge) = gauged(limits());
    gauge.hold();
    let good = engine.submit(text(quiet())).unwrap();
    gauge.wait_until_held();
    let absurd = engine.submit(text(TextParams { guidance_scale: 1e39, ..quiet() })).unwrap();
    gauge.release();
    assert!(matches!(events(absurd).await.last(), Some(Event::Failed(_))));
    assert!(matches!(events(good).await.last(), Some(Event::Done)));
}

#[tokio::test]
async fn draining_finishes_what_runs_and_refuses_the_rest() {
    let (engine, gauge) = gauged(limits());
    gauge.hold();
    let ticket = engine.submit(Request { n: 3, ..text(quiet()) }).unwrap();
    gauge.wait_until_held();
    let drain = tokio::spawn({
        let engine = engine.clone();
        async move { engine.drain().await }
    });
    while !engine.status().draining {
        tokio::task::yield_now().await;
    }
    assert!(matches!(engine.submit(text(quiet())), Err(EngineError::Draining)));
    assert!(!drain.is_finished());
    gauge.release();
    assert_eq!(finished(&events(ticket).await).len(), 3);
    drain.await.unwrap();
}

#[tokio::test]
async fn what_was_accepted_ends_though_every_handle_is_gone() {
    let engine = engine(Hash::new(), limits());
    let ticket = engine.submit(Request { n: 2, ..text(quiet()) }).unwrap();
    drop(engine);
    assert!(matches!(events(ticket).await.last(), Some(Event::Done)));
}

#[tokio::test]
async fn an_interactive_request_overtakes_rollouts() {
    let (engine, gauge) = gauged(Limits { max_rows: 67, max_running: 1, ..limits() });
    gauge.hold();
    let params = TextParams { max_tokens: 64, steps: 64, block_length: 64, stop_at_eos: false, ..quiet() };
    let rollout = Request { priority: Priority::Rollout, ..text(params.clone()) };
    let rollouts = [engine.submit(rollout.clone()).unwrap(), engine.submit(rollout).unwrap()];
    gauge.wait_until_held();
    let interactive = engine.submit(text(TextParams { steps: 8, ..params })).unwrap();
    let before = gauge.forwards.load(SeqCst);
    gauge.release();
    let events = events(interactive).await;
    assert_eq!(finished(&events).len(), 1);
    assert_eq!(before, 0);
    assert!(engine.counters().texts >= 1);
    drop(rollouts);
    engine.drain().await;
    // One step of a rollout was under way, the eight followed; the rollouts had barely begun.
    assert!(gauge.most_rows.load(SeqCst) <= 67);
}

#[tokio::test]
async fn threshold_takes_fewer_forwards_than_planned() {
    let engine = engine(Tensors::new(), limits());
    let sampler = TextSampler::Threshold { threshold: 0.01 };
    let params = TextParams { max_tokens: 32, steps: 32, block_length: 16, sampler, stop_at_eos: false, ..quiet() };
    let events = run(&engine, text(params)).await;
    assert!(finished(&events)[0].steps < 32);
}
