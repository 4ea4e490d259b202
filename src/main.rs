//! The `lacuna` binary.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Threads that candle spins on for elementwise operations. Ours are fused and use rayon; candle's would take a core
/// from the HTTP server while they wait for each other.
const CANDLE_THREADS: &str = "CANDLE_NUM_THREADS";

fn main() -> ExitCode {
    if std::env::var_os(CANDLE_THREADS).is_none() {
        // SAFETY: this is the first statement of the program; no other thread exists that could read the environment.
        unsafe { std::env::set_var(CANDLE_THREADS, "1") };
    }
    lacuna::cli::run(std::env::args_os())
}
