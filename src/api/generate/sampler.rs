//! The field `sampler` of both generate routes: its options and their checks. What they do is the algorithm's business.

use serde::Deserialize;
use utoipa::ToSchema;

use super::check;
use crate::api::defaults::TextDefaults;
use crate::api::error::ApiError;
use crate::api::limits::fixed;
use crate::engine::job::{Ends, ImageSampler, TextSampler};

/// A sampler and its options.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SamplerSpec {
    /// Text: `low_confidence`, `random` (LLaDA), `threshold`, `factor` (Fast-dLLM), `low_confidence_dynamic`,
    /// `low_confidence_static`, `sequential`, `entropy_bounded` (SDAR), `origin`, `maskgit_plus`, `topk_margin`, `entropy`
    /// (Dream). Image: `maskgit`, `maskgit_compat` (MMaDA's rules to the letter), `emerge`.
    pub kind: String,
    /// For `threshold`: positions at least this confident commit. For `low_confidence_dynamic`: those above it. For
    /// `entropy_bounded`: the sum of entropies, in nats, that commits at a step.
    pub threshold: Option<f64>,
    /// For `factor`: the r-th most confident position commits from a confidence of 1 − factor/(r + 1) on.
    pub factor: Option<f64>,
    /// For Dream's samplers: where their schedule ends, in (0, 1).
    pub eps: Option<f64>,
    /// For `maskgit_plus`, `topk_margin`, `entropy`: temperature of the choice of positions; 0 takes the highest.
    pub alg_temp: Option<f64>,
    /// For text: EOS is never drawn.
    pub logits_eos_inf: Option<bool>,
    /// For `low_confidence`, `threshold`, `factor`: ids that end the text commit last.
    pub confidence_eos_eot_inf: Option<bool>,
}

/// Samplers of text and the options that each takes.
const TEXT: [(&str, &[&str]); 12] = [
    ("low_confidence", &["logits_eos_inf", "confidence_eos_eot_inf"]),
    ("random", &["logits_eos_inf"]),
    ("threshold", &["threshold", "logits_eos_inf", "confidence_eos_eot_inf"]),
    ("factor", &["factor", "logits_eos_inf", "confidence_eos_eot_inf"]),
    ("low_confidence_dynamic", &["threshold", "logits_eos_inf"]),
    ("low_confidence_static", &["logits_eos_inf"]),
    ("sequential", &["logits_eos_inf"]),
    ("entropy_bounded", &["threshold", "logits_eos_inf"]),
    ("origin", &["eps", "logits_eos_inf"]),
    ("maskgit_plus", &["eps", "alg_temp", "logits_eos_inf"]),
    ("topk_margin", &["eps", "alg_temp", "logits_eos_inf"]),
    ("entropy", &["eps", "alg_temp", "logits_eos_inf"]),
];

impl SamplerSpec {
    /// Refuses options that the sampler would ignore; `options` are those of every kind.
    fn takes_only(&self, options: &[(&str, &[&str])]) -> Result<(), ApiError> {
        let given = [
            ("threshold", self.threshold.is_some()),
            ("factor", self.factor.is_some()),
            ("eps", self.eps.is_some()),
            ("alg_temp", self.alg_temp.is_some()),
            ("logits_eos_inf", self.logits_eos_inf.is_some()),
            ("confidence_eos_eot_inf", self.confidence_eos_eot_inf.is_some()),
        ];
        let own = options.iter().find(|(kind, _)| *kind == self.kind).map_or(&[][..], |(_, own)| *own);
        let Some((stray, _)) = given.iter().find(|(option, given)| *given && !own.contains(option)) else {
            return Ok(());
        };
        let takers: Vec<&str> = options.iter().filter(|(_, own)| own.contains(stray)).map(|(kind, _)| *kind).collect();
        let hint = match takers.as_slice() {
            [] => "leave it out".to_owned(),
            takers => format!("leave it out, or use sampler {}", takers.join(", ")),
        };
        let message = format!("has no meaning for sampler {}", self.kind);
        Err(ApiError::invalid(format!("sampler.{stray}"), message, hint))
    }
}

/// The sampler of a text and what it makes of end ids. Models that go by blocks have their own default.
pub(super) fn text(
    spec: Option<&SamplerSpec>,
    by_blocks: bool,
    defaults: &TextDefaults,
) -> Result<(TextSampler, Ends), ApiError> {
    let Some(spec) = spec else {
        let threshold = defaults.dynamic_threshold;
        let sampler =
            if by_blocks { TextSampler::LowConfidenceDynamic { threshold } } else { TextSampler::LowConfidence };
        return Ok((sampler, Ends::default()));
    };
    let threshold = spec.threshold.unwrap_or(defaults.threshold);
    let dynamic = spec.threshold.unwrap_or(defaults.dynamic_threshold);
    let entropy = spec.threshold.unwrap_or(defaults.entropy_threshold);
    let factor = spec.factor.unwrap_or(defaults.factor);
    let eps = spec.eps.unwrap_or(defaults.eps);
    let alg_temp = spec.alg_temp.unwrap_or(0.0);
    let kinds = [
        ("low_confidence", TextSampler::LowConfidence),
        ("random", TextSampler::Random),
        ("threshold", TextSampler::Threshold { threshold }),
        ("factor", TextSampler::Factor { factor }),
        ("low_confidence_dynamic", TextSampler::LowConfidenceDynamic { threshold: dynamic }),
        ("low_confidence_static", TextSampler::LowConfidenceStatic),
        ("sequential", TextSampler::Sequential),
        ("entropy_bounded", TextSampler::EntropyBounded { threshold: entropy }),
        ("origin", TextSampler::Origin { eps }),
        ("maskgit_plus", TextSampler::MaskgitPlus { eps, alg_temp }),
        ("topk_margin", TextSampler::TopkMargin { eps, alg_temp }),
        ("entropy", TextSampler::Entropy { eps, alg_temp }),
    ];
    let sampler = check::choice("sampler.kind", &spec.kind, &kinds)?;
    spec.takes_only(&TEXT)?;
    match sampler {
        TextSampler::EntropyBounded { threshold } => {
            check::number("sampler.threshold", threshold, 0.0, fixed::ENTROPY)?;
        }
        _ => drop(check::probability("sampler.threshold", threshold)?),
    }
    check::number("sampler.factor", factor, 0.0, fixed::FACTOR)?;
    check::between_0_and_1("sampler.eps", eps)?;
    check::number("sampler.alg_temp", alg_temp, 0.0, fixed::TEMPERATURE)?;
    let ends = Ends {
        logits_eos_inf: spec.logits_eos_inf.unwrap_or(false),
        confidence_eos_eot_inf: spec.confidence_eos_eot_inf.unwrap_or(false),
    };
    Ok((sampler, ends))
}

/// The sampler of an image.
pub(super) fn image(spec: Option<&SamplerSpec>) -> Result<ImageSampler, ApiError> {
    let Some(spec) = spec else {
        return Ok(ImageSampler::Maskgit);
    };
    let kinds = [
        ("maskgit", ImageSampler::Maskgit),
        ("maskgit_compat", ImageSampler::MaskgitCompat),
        ("emerge", ImageSampler::Emerge),
    ];
    let sampler = check::choice("sampler.kind", &spec.kind, &kinds)?;
    spec.takes_only(&[])?;
    Ok(sampler)
}
