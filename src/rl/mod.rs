//! Learning from what people say of the results.

pub mod reward;
