//! Runs the router on a listener until told to stop, and stops gracefully.

use std::io;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::router;
use super::state::App;

/// Time for the last bytes to leave once nothing runs any more.
const FLUSH: Duration = Duration::from_secs(5);
/// How often histograms are folded, so that they do not grow while nobody reads `/metrics`.
const UPKEEP: Duration = Duration::from_secs(5);

/// Serves until `shutdown` resolves. Then `/ready` says no and new requests are refused, running ones get
/// `state.shutdown.drain` to finish, what is left is cut off with an error, and the connections are closed.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    state: App,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let close = CancellationToken::new();
    let server = axum::serve(listener, router(state.clone())).with_graceful_shutdown(close.clone().cancelled_owned());
    let mut server = tokio::spawn(server.into_future());
    let upkeep = tokio::spawn(upkeep(state.clone()));
    let ended = tokio::select! {
        ended = &mut server => Some(ended),
        () = drain(&state, shutdown) => None,
    };
    upkeep.abort();
    if let Some(ended) = ended {
        return ended.map_err(io::Error::other)?;
    }
    close.cancel();
    match tokio::time::timeout(FLUSH, &mut server).await {
        Ok(ended) => ended.map_err(io::Error::other)?,
        Err(_) => {
            tracing::warn!(seconds = FLUSH.as_secs(), "connections were still open; closing them");
            server.abort();
            Ok(())
        }
    }
}

/// Waits for the signal, then for the running requests; after the drain time they are cut off.
async fn drain(state: &App, shutdown: impl Future<Output = ()>) {
    shutdown.await;
    let limit = state.shutdown.drain;
    let status = state.engine.status();
    tracing::info!(running = status.running, queued = status.queued, limit_s = limit.as_secs(), "draining");
    state.shutdown.draining.cancel();
    if tokio::time::timeout(limit, state.engine.drain()).await.is_err() {
        let left = state.engine.status();
        tracing::warn!(running = left.running, queued = left.queued, "the drain time is over; cutting off the rest");
        state.shutdown.cut.cancel();
    }
    // Drained in time, nothing is cut: what the engine has finished is still to be logged and sent.
}

async fn upkeep(state: App) {
    let mut ticks = tokio::time::interval(UPKEEP);
    loop {
        ticks.tick().await;
        state.metrics.run_upkeep();
    }
}
