//! What a request may ask for. [`ApiLimits`] can be raised by flags; [`fixed`] is part of the protocol.

use serde::Serialize;
use utoipa::ToSchema;

/// Bounds that the operator sets. Every field is a flag of `lacuna serve`: `max_n` is `--max-n`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ApiLimits {
    /// Bytes of a request body.
    pub max_body_bytes: usize,
    /// Seconds within which a request body must have arrived.
    pub body_timeout_s: u64,
    /// Characters of a prompt, of all messages together, of a template's text, or of a negative prompt.
    pub max_prompt_chars: usize,
    /// Entries of `prompt_token_ids`.
    pub max_prompt_tokens: usize,
    /// Completions of one request.
    pub max_n: u32,
    /// Generated tokens of one completion.
    pub max_tokens: usize,
    /// Steps of one completion.
    pub max_steps: usize,
    /// Cells of an image's token grid, drawn or looked at.
    pub max_image_cells: usize,
    /// Milliseconds of `deadline_ms`.
    pub max_deadline_ms: u64,
}

impl Default for ApiLimits {
    fn default() -> Self {
        Self {
            max_body_bytes: 1 << 20,
            body_timeout_s: 30,
            max_prompt_chars: 8192,
            max_prompt_tokens: 4096,
            max_n: 16,
            max_tokens: 512,
            max_steps: 1024,
            max_image_cells: 4096,
            max_deadline_ms: 600_000,
        }
    }
}

/// Bounds that no flag changes.
pub mod fixed {
    /// Bytes of all request headers together.
    pub const HEADER_BYTES: usize = 32 << 10;
    /// Bytes of a client's `x-request-id`; a longer one is replaced.
    pub const REQUEST_ID_BYTES: usize = 128;
    /// Pixels along a side of a picture that a request brings. Its bytes are part of the body.
    pub const PICTURE_SIDE: u32 = 4096;
    /// Entries of `messages`.
    pub const MESSAGES: usize = 64;
    /// Pieces of a template.
    pub const TEMPLATE_PARTS: usize = 128;
    /// `temperature` and `token_temperature`.
    pub const TEMPERATURE: f64 = 10.0;
    /// `sampler.threshold` of `entropy_bounded`, in nats.
    pub const ENTROPY: f64 = 1000.0;
    /// `sampler.factor`.
    pub const FACTOR: f64 = 100.0;
    /// `guidance_scale`.
    pub const GUIDANCE: f64 = 50.0;
    /// `top_k`.
    pub const TOP_K: u64 = 1_000_000;
    /// `vicinity`.
    pub const VICINITY: u64 = 4096;
    /// Entries of `stop`.
    pub const STOPS: usize = 4;
    /// Characters of one stop string.
    pub const STOP_CHARS: usize = 64;
    /// Pairs of `metadata`.
    pub const METADATA_PAIRS: usize = 16;
    /// Characters of a key of `metadata`.
    pub const METADATA_KEY_CHARS: usize = 64;
    /// Characters of a value of `metadata`.
    pub const METADATA_VALUE_CHARS: usize = 512;
    /// Characters of `user`.
    pub const USER_CHARS: usize = 256;
    /// Characters of `metric`.
    pub const METRIC_CHARS: usize = 64;
    /// Characters of a rating that is text.
    pub const FEEDBACK_CHARS: usize = 4000;
    /// Bytes of an `Idempotency-Key`.
    pub const IDEMPOTENCY_KEY_BYTES: usize = 255;
    /// Characters of the reason for a decision about an adapter.
    pub const REASON_CHARS: usize = 500;
    /// Bytes of the settings of an imported adapter.
    pub const ADAPTER_CONFIG_BYTES: u64 = 1 << 20;
    /// Bytes of an imported adapter's name.
    pub const ADAPTER_NAME_BYTES: u64 = 64;
    /// Bytes of a multipart body beside the contents of its fields.
    pub const MULTIPART_BYTES: u64 = 16 << 10;
    /// Seconds within which an imported adapter must have arrived, however steadily it comes.
    pub const ADAPTER_SECONDS: u64 = 1800;
    /// Lines of the audit trail in one answer.
    pub const AUDIT_ROWS: u32 = 1000;
    /// Training runs in one answer.
    pub const RUNS: u32 = 100;
}
