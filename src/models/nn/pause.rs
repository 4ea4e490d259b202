//! Points between products at which a long computation may pause, so that whoever has something urgent to compute waits
//! for one product and not for all of them. When to pause is the caller's business.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Told how long its thread has computed since it was last asked; takes as long as the pause is to be.
pub type Pause = Rc<dyn Fn(Duration)>;

thread_local! {
    static PAUSE: RefCell<Option<Pause>> = const { RefCell::new(None) };
    static SINCE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Runs `f`, asking `pause` between its products on this thread, and returns how long it has computed since it last asked.
/// Within another such computation, which happens where threads take over each other's tasks, it stands in for that one.
pub fn between_products<T>(pause: Pause, f: impl FnOnce() -> T) -> (T, Duration) {
    /// Puts back what was there, also when `f` panics.
    struct Before(Option<Pause>);
    impl Drop for Before {
        fn drop(&mut self) {
            PAUSE.set(self.0.take());
            SINCE.set(Some(Instant::now()));
        }
    }
    let before = Before(PAUSE.replace(Some(pause)));
    SINCE.set(Some(Instant::now()));
    let out = f();
    let since = computed();
    drop(before);
    (out, since)
}

/// A point between two products.
pub(super) fn point() {
    if let Some(pause) = PAUSE.with_borrow(Clone::clone) {
        pause(computed());
        SINCE.set(Some(Instant::now()));
    }
}

fn computed() -> Duration {
    SINCE.get().map_or(Duration::ZERO, |since| since.elapsed())
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use candle_core::{DType, Device, Tensor, Var};

    use super::*;
    use crate::models::nn::{Format, Linear, Precision, Products};

    #[test]
    fn it_is_asked_at_every_product_forwards_and_backwards_and_only_meanwhile() -> candle_core::Result<()> {
        let weight = Tensor::ones((8, 4), DType::F32, &Device::Cpu)?;
        for (precision, format) in
            [(Precision::Exact, Some(Format::F32)), (Precision::Mixed, Some(Format::F32)), (Precision::Mixed, None)]
        {
            let layer = Linear::new(&weight, None, Products { precision, format })?;
            let x = Var::ones((3, 4), DType::F32, &Device::Cpu)?;
            let asked = Rc::new(Cell::new(0));
            let count = {
                let asked = Rc::clone(&asked);
                move |_| asked.set(asked.get() + 1)
            };
            layer.forward(&x)?;
            let (forwards, rest) = between_products(Rc::new(count.clone()), || layer.forward(&x));
            assert_eq!(asked.get(), 1, "{format:?}");
            assert!(rest > Duration::ZERO);
            let loss = forwards?.sum_all()?;
            let (gradients, _) = between_products(Rc::new(count), || loss.backward());
            assert!(gradients?.get(&x).is_some());
            assert_eq!(asked.get(), 2, "{format:?}");
            layer.forward(&x)?;
            assert_eq!(asked.get(), 2, "{format:?}");
        }
        Ok(())
    }

    #[test]
    fn what_a_pause_takes_is_not_computing() {
        const PAUSED: Duration = Duration::from_millis(300);
        let told = Rc::new(RefCell::new(Vec::new()));
        let pause = {
            let told = Rc::clone(&told);
            move |computed| {
                told.borrow_mut().push(computed);
                std::thread::sleep(PAUSED);
            }
        };
        let ((), rest) = between_products(Rc::new(pause), || {
            point();
            point();
        });
        assert!(told.borrow()[1] < PAUSED && rest < PAUSED, "{told:?} {rest:?}");
    }

    #[test]
    fn one_within_another_stands_in_for_it_and_a_panic_leaves_nothing_behind() {
        let asked = Rc::new(RefCell::new(Vec::new()));
        let by = |name| -> Pause {
            let asked = Rc::clone(&asked);
            Rc::new(move |_| asked.borrow_mut().push(name))
        };
        between_products(by("outer"), || {
            point();
            between_products(by("inner"), point);
            let panicked = catch_unwind(AssertUnwindSafe(|| between_products(by("lost"), || panic!("as intended"))));
            assert!(panicked.is_err());
            point();
        });
        point();
        assert_eq!(*asked.borrow(), ["outer", "inner", "outer"]);
    }
}
