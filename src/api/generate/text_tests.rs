use serde_json::{Value, json};

use super::*;
use crate::api::generate::common::tests::served;
use crate::engine::job::{Ends, TextSampler};

fn plan(body: Value) -> Result<Plan, ApiError> {
    let request: TextRequest = serde_json::from_value(body).unwrap();
    let defaults = TextDefaults { max_tokens: 64, tokens_per_step: 2, block_length: 32, ..TextDefaults::default() };
    request.plan(&served(), &ApiLimits::default(), &defaults)
}

fn params(body: Value) -> TextParams {
    match plan(body).unwrap().request.task {
        Task::Text(params) => params,
        Task::Image(_) => panic!("an image"),
    }
}

/// Field, limit and status of the refusal of a prompt with one more field.
fn refused(field: &str, value: Value) -> (String, Option<Value>, u16) {
    let mut body = json!({"prompt": "x"});
    body[field] = value;
    let problem = plan(body).unwrap_err().problem();
    assert!(problem.hint.is_some(), "{field} has no hint");
    (problem.field.unwrap(), problem.limit, problem.status)
}

#[test]
fn absent_fields_get_the_defaults() {
    let params = params(json!({"prompt": "x"}));
    assert_eq!((params.max_tokens, params.steps, params.block_length), (64, 32, 32));
    assert_eq!((params.temperature, params.top_p, params.top_k), (0.0, 1.0, 0));
    assert_eq!(params.sampler, TextSampler::LowConfidence);
    assert!(params.stop_at_eos);
    let plan = plan(json!({"prompt": "x"})).unwrap();
    assert!(plan.log.store && plan.stream.is_none());
    assert_eq!(plan.request.n, 1);
}

#[test]
fn default_blocks_and_steps_always_divide() {
    let shape = |body: Value| {
        let params = params(body);
        (params.block_length, params.steps)
    };
    assert_eq!(shape(json!({"prompt": "x", "max_tokens": 40})), (20, 20));
    assert_eq!(shape(json!({"prompt": "x", "max_tokens": 61})), (61, 30), "no divisor near: one block");
    assert_eq!(shape(json!({"prompt": "x", "max_tokens": 1})), (1, 1));
    assert_eq!(shape(json!({"prompt": "x", "steps": 5})), (64, 5), "five steps do not divide among two blocks");
    assert_eq!(shape(json!({"prompt": "x", "block_length": 8, "max_tokens": 24})), (8, 12));
    assert_eq!(shape(json!({"template": "a[[1]]b[[1]]"})), (200, 1), "a template is one block");
    for max_tokens in 1..=512 {
        let (block, steps) = shape(json!({"prompt": "x", "max_tokens": max_tokens}));
        assert!(max_tokens % block == 0 && steps % (max_tokens / block) == 0, "{max_tokens}: {block}, {steps}");
    }
}

#[test]
fn every_numeric_bound_is_enforced() {
    let limits = ApiLimits::default();
    for (field, over, limit) in [
        ("n", json!(17), json!(16)),
        ("n", json!(0), json!(1)),
        ("max_tokens", json!(513), json!(512)),
        ("max_tokens", json!(0), json!(1)),
        ("steps", json!(1025), json!(limits.max_steps)),
        ("steps", json!(0), json!(1)),
        ("block_length", json!(513), json!(512)),
        ("block_length", json!(0), json!(1)),
        ("top_k", json!(1_000_001), json!(1_000_000)),
        ("top_p", json!(0.0), json!(1)),
        ("top_p", json!(1.01), json!(1)),
        ("temperature", json!(10.5), json!(10.0)),
        ("temperature", json!(-0.1), json!(0.0)),
        ("guidance_scale", json!(51), json!(50.0)),
        ("guidance_scale", json!(-1), json!(0.0)),
        ("deadline_ms", json!(600_001), json!(600_000)),
        ("deadline_ms", json!(0), json!(1)),
    ] {
        assert_eq!(refused(field, over), (field.to_owned(), Some(limit), 400));
    }
}

#[test]
fn every_length_is_bounded() {
    let long = |chars: usize| "x".repeat(chars);
    for (field, over, limit) in [
        ("negative_prompt", json!(long(8193)), 8192),
        ("stop", json!(["a", "b", "c", "d", "e"]), 4),
        ("stop", json!(long(65)), 64),
        ("user", json!(long(257)), 256),
    ] {
        assert_eq!(refused(field, over), (field.to_owned(), Some(limit.into()), 400));
    }
    let alone = |body: Value| plan(body).unwrap_err().problem();
    assert_eq!(alone(json!({"prompt": long(8193)})).actual, Some(8193.into()));
    assert_eq!(alone(json!({"messages": [{"role": "user", "content": long(8193)}]})).field.unwrap(), "messages");
    let many = vec![json!({"role": "user", "content": "x"}); fixed::MESSAGES + 1];
    assert_eq!(alone(json!({"messages": many})).limit, Some(fixed::MESSAGES.into()));
    assert_eq!(alone(json!({"prompt_token_ids": vec![1; 4097]})).limit, Some(4096.into()));
    assert_eq!(alone(json!({"template": long(8190) + "[[1]]"})).field.unwrap(), "template");
}

#[test]
fn metadata_is_bounded_in_pairs_keys_and_values() {
    let pairs = |count: usize| (0..count).map(|i| (format!("k{i}"), "v".to_owned())).collect::<BTreeMap<_, _>>();
    assert_eq!(plan(json!({"prompt": "x", "metadata": pairs(16)})).unwrap().log.metadata["k3"], "v");
    assert_eq!(refused("metadata", json!(pairs(17))).1, Some(16.into()));
    assert_eq!(refused("metadata", json!({"k".repeat(65): "v"})).1, Some(64.into()));
    assert_eq!(refused("metadata", json!({"k": "v".repeat(513)})).0, "metadata.k");
}

#[test]
fn ids_must_be_in_the_vocabulary() {
    let problem = plan(json!({"prompt_token_ids": [1, 100]})).unwrap_err().problem();
    assert_eq!((problem.field.unwrap().as_str(), problem.limit), ("prompt_token_ids[1]", Some(99.into())));
    let plan = plan(json!({"prompt_token_ids": [1, 99]})).unwrap();
    assert_eq!(plan.log.prompt, None);
}

#[test]
fn samplers_are_named_and_take_only_their_own_options() {
    let sampler = |spec: Value| params(json!({"prompt": "x", "sampler": spec})).sampler;
    assert_eq!(sampler(json!({"kind": "random", "threshold": null})), TextSampler::Random);
    assert_eq!(sampler(json!({"kind": "threshold", "threshold": 0.5})), TextSampler::Threshold { threshold: 0.5 });
    assert_eq!(sampler(json!({"kind": "threshold"})), TextSampler::Threshold { threshold: 0.9 });
    let (field, limit, _) = refused("sampler", json!({"kind": "entropi"}));
    let kinds = "low_confidence random threshold factor low_confidence_dynamic low_confidence_static sequential \
                 entropy_bounded origin maskgit_plus topk_margin entropy";
    assert_eq!((field.as_str(), limit), ("sampler.kind", Some(json!(kinds.split(' ').collect::<Vec<_>>()))));
    assert_eq!(refused("sampler", json!({"kind": "random", "threshold": 0.5})).0, "sampler.threshold");
    assert_eq!(refused("sampler", json!({"kind": "threshold", "threshold": 0})).0, "sampler.threshold");
}

#[test]
fn every_sampler_checks_its_options() {
    let plain = json!({"kind": "entropy", "eps": 0.01, "alg_temp": 0.2, "logits_eos_inf": true});
    let entropy = params(json!({"prompt": "x", "sampler": plain}));
    assert_eq!(entropy.sampler, TextSampler::Entropy { eps: 0.01, alg_temp: 0.2 });
    assert_eq!(entropy.ends, Ends { logits_eos_inf: true, confidence_eos_eot_inf: false });
    assert_eq!(entropy.block_length, 64, "Dream's samplers know no blocks");
    let sampler = |spec: Value| params(json!({"prompt": "x", "sampler": spec})).sampler;
    assert_eq!(sampler(json!({"kind": "factor"})), TextSampler::Factor { factor: 1.0 });
    assert_eq!(sampler(json!({"kind": "origin"})), TextSampler::Origin { eps: 1e-3 });
    assert_eq!(sampler(json!({"kind": "topk_margin"})), TextSampler::TopkMargin { eps: 1e-3, alg_temp: 0.0 });
    for (spec, field, limit) in [
        (json!({"kind": "factor", "factor": -1}), "factor", Some(json!(0.0))),
        (json!({"kind": "factor", "factor": 101}), "factor", Some(json!(100.0))),
        (json!({"kind": "origin", "eps": 1}), "eps", Some(json!(1))),
        (json!({"kind": "entropy", "alg_temp": 11}), "alg_temp", Some(json!(10.0))),
        (json!({"kind": "origin", "alg_temp": 0.1}), "alg_temp", None),
        (json!({"kind": "low_confidence", "eps": 0.1}), "eps", None),
        (json!({"kind": "entropy", "factor": 1}), "factor", None),
        (json!({"kind": "maskgit_plus", "confidence_eos_eot_inf": true}), "confidence_eos_eot_inf", None),
    ] {
        assert_eq!(refused("sampler", spec), (format!("sampler.{field}"), limit, 400));
    }
}

#[test]
fn other_adapters_and_fidelities_are_refused() {
    assert_eq!(refused("adapter", json!("x@1")), ("adapter".to_owned(), None, 404));
    assert!(plan(json!({"prompt": "x", "adapter": "base@0", "fidelity": "exact"})).is_ok());
    assert_eq!(
        refused("fidelity", json!("fast")),
        ("fidelity".to_owned(), Some(json!(["exact", "prefix", "dual"])), 400)
    );
    assert_eq!(params(json!({"prompt": "x"})).fidelity, Fidelity::Exact);
    for (name, fidelity) in [("prefix", Fidelity::Prefix), ("dual", Fidelity::Dual)] {
        let plan = plan(json!({"prompt": "x", "fidelity": name})).unwrap();
        assert_eq!(plan.log.params["fidelity"], name);
        let Task::Text(params) = plan.request.task else { panic!("a text") };
        assert_eq!(params.fidelity, fidelity);
    }
    assert_eq!(params(json!({"prompt": "x", "fidelity": "dual", "vicinity": 4096})).vicinity, 4096);
    assert_eq!(refused("vicinity", json!(4097)), ("vicinity".to_owned(), Some(json!(4096)), 400));
}

#[test]
fn messages_go_to_the_template_and_roles_are_checked() {
    let messages = json!([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]);
    let said = plan(json!({"messages": messages})).unwrap();
    let message = |role: &str, content: &str| job::Message { role: role.to_owned(), content: content.to_owned() };
    assert_eq!(said.request.prompt, Prompt::Messages(vec![message("system", "a"), message("user", "b")]));
    let problem = plan(json!({"messages": [{"role": "tool", "content": "a"}]})).unwrap_err().problem();
    assert_eq!(problem.field.unwrap(), "messages[0].role");
    assert_eq!(plan(json!({"messages": []})).unwrap_err().problem().field.unwrap(), "messages");
}

#[test]
fn a_template_says_its_own_length() {
    let made = plan(json!({"template": "2+3=[[4]]"})).unwrap();
    assert_eq!(made.log.prompt.as_deref(), Some("2+3=[[4]]"));
    assert_eq!(params(json!({"template": "2+3=[[4]]"})).max_tokens, 4);
    let problem = plan(json!({"template": "2+3=[[4]]", "max_tokens": 4})).unwrap_err().problem();
    assert_eq!(problem.field.unwrap(), "max_tokens");
}

#[test]
fn what_is_stored_and_echoed_has_the_effective_settings() {
    let body = json!({"prompt": "x", "n": 2, "seed": 5, "negative_prompt": "y", "user": "ann", "store": false});
    let plan = plan(body).unwrap();
    assert_eq!((plan.request.seed, plan.log.store), (5, false));
    assert_eq!((&plan.log.params["n"], &plan.log.params["steps"]), (&json!(2), &json!(32)));
    assert_eq!(plan.log.params["sampler"]["kind"], "low_confidence");
    assert_eq!(plan.log.params["negative_prompt"], "y");
    assert!(!plan.log.params.to_string().contains("ann"), "raw user ids stay out of the log");
}

#[test]
fn logprobs_have_two_spellings() {
    assert!(plan(json!({"prompt": "x", "logprobs": true})).unwrap().returns.logprobs);
    let returns = plan(json!({"prompt": "x", "return": ["token_ids", "logprobs"]})).unwrap().returns;
    assert_eq!(returns, Returns { tokens: true, commit_steps: false, logprobs: true });
}
