//! Runs the router on a listener until told to stop, and stops gracefully.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::serve::{Listener, ListenerExt as _};
use tokio::net::{TcpListener, TcpStream};
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
    let server =
        axum::serve(undelayed(listener), router(state.clone())).with_graceful_shutdown(close.clone().cancelled_owned());
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

/// Connections that send what is written at once: an event is small, and the system would keep it back until the client
/// has confirmed the one before, some 40 ms later.
fn undelayed(listener: TcpListener) -> impl Listener<Io = TcpStream, Addr = SocketAddr> {
    listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "events of a connection may be kept back");
        }
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_send_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let mut listener = undelayed(listener);
        let ((stream, _), client) = tokio::join!(listener.accept(), client);
        assert!(stream.nodelay().unwrap() && client.is_ok());
    }
}
