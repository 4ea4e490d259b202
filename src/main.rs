//! The `lacuna` binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    use std::io::Write;
    let a: Vec<String> = std::env::args().collect();
    let get = |k: &str, d: &str| a.iter().position(|x| x == k).and_then(|i| a.get(i + 1).cloned()).unwrap_or(d.into());
    let mut config = lacuna::starter::config();
    config.n_layers = get("--layers", "6").parse()?;
    let options = lacuna::starter::pretrain::Options {
        out: get("--out", "/work/train/run").into(),
        steps: get("--steps", "100").parse()?,
        batch: get("--batch", "96").parse()?,
        seed: 1,
        lr: get("--lr", "3e-3").parse()?,
        warmup: 100,
        decay_share: get("--decay", "0.5").parse()?,
        ema: 0.998,
        muon: !a.contains(&"--adamw".to_string()),
        precision: if a.contains(&"--exact".to_string()) { lacuna::models::nn::Precision::Exact } else { lacuna::models::nn::Precision::Mixed },
        mixture: lacuna::starter::pretrain::Mixture { scenes: get("--scenes", "0.6").parse()?, ..Default::default() },
        checkpoint_every: 200,
        resume: a.contains(&"--resume".to_string()),
        config,
    };
    let mut acc = [0.0; 2];
    lacuna::starter::pretrain::run(&options, |p| {
        for i in 0..2 { acc[i] = if p.step == 1 { p.losses[i] } else { 0.95 * acc[i] + 0.05 * p.losses[i] }; }
        if p.step % 10 == 0 {
            let _ = writeln!(std::io::stdout(), "{} text {:.3} image {:.3} lr {:.2e} norm {:.2} rows/s {:.0} {:.2}s", p.step, acc[0], acc[1], p.lr, p.grad_norm, p.rows as f64 / p.elapsed.as_secs_f64(), p.elapsed.as_secs_f64());
        }
        true
    })?;
    Ok(())
}
