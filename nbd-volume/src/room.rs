//! A bound for the memory of what is fetched of tables at the same time.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes that may be fetched at the same time. Those who want more than is left wait in the order in which they came.
///
/// Nobody who has room waits for anything but what the store is asked for: so it always comes back.
#[derive(Debug)]
pub(crate) struct Room {
    bytes: Arc<Semaphore>,
    all: u32,
}

/// Some of it, until this is dropped.
#[derive(Debug)]
pub(crate) struct Taken {
    _permit: OwnedSemaphorePermit,
}

impl Room {
    pub(crate) fn new(bytes: u64) -> Self {
        let all = u32::try_from(bytes).unwrap_or(u32::MAX).max(1);
        let all = all.min(u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX));
        Self { bytes: Arc::new(Semaphore::new(all as usize)), all }
    }

    /// All of it, in bytes.
    pub(crate) fn all(&self) -> u64 {
        u64::from(self.all)
    }

    /// Takes so many bytes; all of it for what takes more, which is alone then. Cancel-safe.
    pub(crate) async fn take(&self, bytes: u64) -> Taken {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.all);
        match Arc::clone(&self.bytes).acquire_many_owned(bytes).await {
            Ok(permit) => Taken { _permit: permit },
            Err(_) => unreachable!("the semaphore is never closed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;
    use std::sync::atomic::{AtomicU64, Ordering};

    use nbd_testkit::cases;

    use super::*;

    /// Tasks of any sizes, some of which are given up while they wait: what they have never exceeds the bound but for one
    /// that is alone, each of the others gets its turn, and all of it is there again at the end.
    #[test]
    fn what_is_taken_stays_below_the_bound_and_comes_back() {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.unwrap();
        cases(50, |random| {
            let bound = 1 + random.below(1000);
            let room = Arc::new(Room::new(bound));
            let (taken, ended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
            let count = 1 + random.below(40);
            let plans: Vec<_> =
                (0..count).map(|_| [0; 4].map(|_: u64| random.below(1500))).collect();
            runtime.block_on(async {
                let tasks: Vec<_> = plans
                    .into_iter()
                    .map(|[start, bytes, time, patience]| {
                        let (room, taken, ended) = (room.clone(), taken.clone(), ended.clone());
                        tokio::spawn(async move {
                            tokio::time::sleep(Duration::from_millis(start)).await;
                            let patience = Duration::from_millis(patience * 100);
                            let waited = tokio::time::timeout(patience, room.take(bytes)).await;
                            if let Ok(_mine) = waited {
                                let mine = bytes.min(bound);
                                let now = taken.fetch_add(mine, Ordering::Relaxed) + mine;
                                assert!(now <= bound, "{now} of {bound}");
                                tokio::time::sleep(Duration::from_millis(time)).await;
                                taken.fetch_sub(mine, Ordering::Relaxed);
                            }
                            ended.fetch_add(1, Ordering::Relaxed);
                        })
                    })
                    .collect();
                for task in tasks {
                    task.await.unwrap();
                }
            });
            assert_eq!(ended.load(Ordering::Relaxed), count);
            assert_eq!(room.bytes.available_permits() as u64, bound);
        });
    }
}
