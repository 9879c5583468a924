//! Futures in numbered slots, each kept for one request after the other.
//!
//! A set such as `FuturesUnordered` takes a node and a box for each future. Here a slot's future lives as long as the
//! connection: it takes a request from its [`Mailbox`], carries it out, and leaves the outcome there. So a request
//! costs no allocation once its slot was used before.

use core::future::poll_fn;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Wake;

use atomic_waker::AtomicWaker;

/// Where a slot's future gets a request from, and leaves its outcome. Clones are the same mailbox.
#[derive(Debug)]
pub(crate) struct Mailbox<I, O>(Arc<Mutex<Letters<I, O>>>);

#[derive(Debug)]
struct Letters<I, O> {
    request: Option<I>,
    outcome: Option<O>,
}

impl<I, O> Clone for Mailbox<I, O> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<I, O> Mailbox<I, O> {
    fn new(request: I) -> Self {
        Self(Arc::new(Mutex::new(Letters { request: Some(request), outcome: None })))
    }

    fn lock(&self) -> MutexGuard<'_, Letters<I, O>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next request. Cancel-safe.
    pub(crate) async fn next(&self) -> I {
        // Whoever puts a request in has the future polled.
        poll_fn(|_| self.lock().request.take().map_or(Poll::Pending, Poll::Ready)).await
    }

    /// Leaves the outcome of the latest request.
    pub(crate) fn finish(&self, outcome: O) {
        self.lock().outcome = Some(outcome);
    }
}

type BoxFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Futures in numbered slots.
pub(crate) struct SlotFutures<I, O> {
    slots: Vec<Option<Slot<I, O>>>,
    ready: Arc<Ready>,
    /// Slots that are being polled; kept for its room.
    polled: Vec<usize>,
}

struct Slot<I, O> {
    future: BoxFuture,
    mailbox: Mailbox<I, O>,
    alarm: Arc<Alarm>,
    /// The alarm as a waker, made once.
    waker: Waker,
}

/// The slots that want to be polled.
#[derive(Debug, Default)]
struct Ready {
    slots: Mutex<Vec<usize>>,
    waker: AtomicWaker,
}

/// Wakes one slot.
#[derive(Debug)]
struct Alarm {
    slot: usize,
    /// It is in the list already.
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.enlist() {
            self.ready.waker.wake();
        }
    }
}

impl Alarm {
    /// Puts the slot on the list; `false` if it is there already.
    fn enlist(&self) -> bool {
        let new = !self.queued.swap(true, Ordering::AcqRel);
        if new {
            self.ready.lock().push(self.slot);
        }
        new
    }
}

impl Ready {
    fn lock(&self) -> MutexGuard<'_, Vec<usize>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<I, O> SlotFutures<I, O> {
    /// No futures yet.
    pub(crate) fn new() -> Self {
        Self { slots: Vec::new(), ready: Arc::default(), polled: Vec::new() }
    }

    /// Has a slot carry out a request with the next [`poll`](Self::poll). The slot must be idle. Its future is made by
    /// `make` when it has none yet.
    pub(crate) fn start(
        &mut self,
        slot: usize,
        request: I,
        make: impl FnOnce(Mailbox<I, O>) -> BoxFuture,
    ) {
        if slot >= self.slots.len() {
            self.slots.resize_with(slot + 1, || None);
        }
        match &self.slots[slot] {
            Some(idle) => {
                idle.mailbox.lock().request = Some(request);
                idle.alarm.enlist();
            }
            None => {
                let mailbox = Mailbox::new(request);
                let ready = Arc::clone(&self.ready);
                let alarm = Arc::new(Alarm { slot, queued: AtomicBool::new(false), ready });
                alarm.enlist();
                let waker = Waker::from(Arc::clone(&alarm));
                let future = make(mailbox.clone());
                self.slots[slot] = Some(Slot { future, mailbox, alarm, waker });
            }
        }
    }

    /// Polls the futures that were started or woken, each once, and hands over what they finished. Later wakes wake
    /// `cx`.
    pub(crate) fn poll(&mut self, cx: &Context<'_>, mut finished: impl FnMut(O)) {
        if self.slots.is_empty() {
            return;
        }
        self.ready.waker.register(cx.waker());
        core::mem::swap(&mut *self.ready.lock(), &mut self.polled);
        for index in self.polled.drain(..) {
            let Some(Some(slot)) = self.slots.get_mut(index) else { continue };
            // Before it is polled: a wake in the meantime counts for the next time.
            slot.alarm.queued.store(false, Ordering::Release);
            let done = slot.future.as_mut().poll(&mut Context::from_waker(&slot.waker)).is_ready();
            let outcome = slot.mailbox.lock().outcome.take();
            if done {
                self.slots[index] = None;
            }
            if let Some(outcome) = outcome {
                finished(outcome);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use proptest::prelude::*;

    use super::*;

    /// What a request waits for: its own number of wakes.
    #[derive(Clone, Default)]
    struct Gate(Arc<Mutex<(u32, Option<Waker>)>>);

    impl Gate {
        fn ring(&self) {
            let waker = {
                let mut gate = self.0.lock().unwrap();
                gate.0 = gate.0.saturating_sub(1);
                gate.1.take()
            };
            if let Some(waker) = waker {
                waker.wake();
            }
        }

        async fn pass(&self) {
            poll_fn(|cx| {
                let mut gate = self.0.lock().unwrap();
                if gate.0 == 0 {
                    return Poll::Ready(());
                }
                gate.1 = Some(cx.waker().clone());
                Poll::Pending
            })
            .await;
        }
    }

    type Futures = SlotFutures<(u32, Gate), u32>;

    fn serve(mailbox: Mailbox<(u32, Gate), u32>) -> BoxFuture {
        Box::pin(async move {
            loop {
                let (number, gate) = mailbox.next().await;
                gate.pass().await;
                mailbox.finish(number);
            }
        })
    }

    fn poll(futures: &mut Futures, waker: &Waker) -> Vec<u32> {
        let mut finished = Vec::new();
        futures.poll(&Context::from_waker(waker), |number| finished.push(number));
        finished
    }

    /// Counts its wakes.
    #[derive(Default)]
    struct Wakes(std::sync::atomic::AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    proptest! {
        #[test]
        fn every_request_finishes_when_it_is_woken_often_enough(
            steps in prop::collection::vec((0_usize..6, 0_u32..4), 1..80),
        ) {
            let wakes = Arc::new(Wakes::default());
            let waker = Waker::from(Arc::clone(&wakes));
            let mut futures = Futures::new();
            let mut busy: BTreeMap<usize, (u32, Gate)> = BTreeMap::new();
            let mut slots: HashMap<u32, usize> = HashMap::new();
            let mut next = 0;
            for (slot, count) in steps {
                let before = wakes.0.load(Ordering::Relaxed);
                if let Some((number, gate)) = busy.get(&slot) {
                    gate.ring();
                    prop_assert!(wakes.0.load(Ordering::Relaxed) > before, "{number} was not woken");
                } else {
                    let gate = Gate::default();
                    gate.0.lock().unwrap().0 = count;
                    busy.insert(slot, (next, gate.clone()));
                    slots.insert(next, slot);
                    futures.start(slot, (next, gate), serve);
                    next += 1;
                }
                let finished = poll(&mut futures, &waker);
                let expected = busy
                    .iter()
                    .filter(|(_, (_, gate))| gate.0.lock().unwrap().0 == 0)
                    .map(|(_, (number, _))| *number);
                prop_assert_eq!(&finished, &expected.collect::<Vec<_>>());
                for number in finished {
                    busy.remove(&slots[&number]);
                }
                prop_assert!(poll(&mut futures, &waker).is_empty(), "nothing happens unwoken");
            }
        }
    }

    #[test]
    fn a_slot_makes_one_future_for_all_of_its_requests() {
        let mut futures = Futures::new();
        let mut made = 0;
        for number in 0..10 {
            futures.start(3, (number, Gate::default()), |mailbox| {
                made += 1;
                serve(mailbox)
            });
            assert_eq!(poll(&mut futures, Waker::noop()), [number]);
        }
        assert_eq!(made, 1);
    }

    #[test]
    fn a_future_that_wakes_itself_is_polled_once_in_a_round() {
        let mut futures: SlotFutures<(), u32> = SlotFutures::new();
        futures.start(0, (), |mailbox| {
            Box::pin(async move {
                mailbox.next().await;
                let mut polls = 0;
                poll_fn(|cx| {
                    polls += 1;
                    cx.waker().wake_by_ref();
                    if polls < 3 { Poll::Pending } else { Poll::Ready(()) }
                })
                .await;
                mailbox.finish(polls);
            })
        });
        let mut counts = Vec::new();
        for _ in 0..4 {
            let mut finished = 0;
            futures.poll(&Context::from_waker(Waker::noop()), |polls| finished = polls);
            counts.push(finished);
        }
        assert_eq!(counts, [0, 0, 3, 0]);
    }
}
