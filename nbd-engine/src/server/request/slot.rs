//! The slot of a request, and the memory that a connection is charged for its requests.

use std::sync::Arc;
use std::task::Context;

use nbd_proto::RequestId;

use crate::export::{Body, Pool};
use crate::server::budget::{Account, BufferBudget};
use crate::server::dispatch::Work;
use crate::server::metrics::Started;
use crate::server::payload::{Payload, SparePages};
use crate::server::status::Status;

/// What belongs to a request, beside what the machine keeps of it. Used again for later requests.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) id: Option<RequestId>,
    /// What was read, or the extents that were found.
    pub(super) work: Work,
    /// What is to be written, unless it was received in one piece.
    pub(super) payload: Payload,
    /// Bytes that are charged to the connection's account.
    pub(super) charged: usize,
    /// What is counted once the request is over, if anything is.
    pub(super) started: Option<Started>,
}

impl Slot {
    pub(super) fn new(pool: &Arc<Pool>) -> Self {
        Self {
            id: None,
            work: Work { body: Body::with_pool(Arc::clone(pool)), status: Status::default() },
            payload: Payload::default(),
            charged: 0,
            started: None,
        }
    }

    /// The request that has the slot from now on; `None` for none.
    pub(super) fn assign(&mut self, id: Option<RequestId>) {
        self.id = id;
        self.started = None;
        self.work.clear();
        self.payload.clear();
    }
}

/// The buffers of a connection, and who pays for them.
pub(super) struct Memory {
    pub(super) account: Account,
    pub(super) pool: Arc<Pool>,
    pub(super) spare_pages: SparePages,
}

impl Memory {
    pub(super) fn new(budget: &Arc<BufferBudget>) -> Self {
        Self {
            account: Account::new(Arc::clone(budget)),
            pool: Arc::default(),
            spare_pages: SparePages::default(),
        }
    }

    /// Charges what a request may need to the account. `false` if it has to wait for others; the task is woken when
    /// it is worth trying again.
    pub(super) fn charge(&mut self, slot: &mut Slot, bytes: usize, cx: &mut Context<'_>) -> bool {
        let bytes = self.account.cap(bytes);
        let missing = bytes.saturating_sub(slot.charged);
        if missing == 0 {
            return true;
        }
        if !self.account.charge(missing, cx.waker()) {
            self.free_cached();
            return false;
        }
        slot.charged += missing;
        // What is kept is to be paid for, too, apart from what this request makes use of.
        let cached = self.cached();
        if cached > 0 {
            let useful = self.pool.kept() == 0 || self.pool.has_fitting(bytes);
            if !self.account.extend(cached.saturating_sub(if useful { bytes } else { 0 })) {
                self.free_cached();
            }
        }
        true
    }

    /// Lowers what is charged for a slot to what it holds.
    pub(super) fn settle(&mut self, slot: &mut Slot, held: usize) {
        if held < slot.charged {
            self.account.release(slot.charged - held);
            slot.charged = held;
        }
    }

    /// A slot is free; it keeps memory for its next request only while no other connection needs it.
    pub(super) fn recycle(&mut self, slot: &mut Slot) {
        let crowded = self.account.is_in_the_way();
        if crowded {
            slot.work.body.free();
            slot.work.status.free();
            slot.payload.free();
        }
        self.settle(slot, slot.work.body.buffer_size());
        let cached = self.cached();
        if crowded || cached > 0 && !self.account.extend(cached) {
            self.free_cached();
            self.account.give_back_unused();
        }
    }

    /// Bytes of buffers that wait to be used again.
    fn cached(&self) -> usize {
        self.pool.kept() + self.spare_pages.kept()
    }

    pub(super) fn free_cached(&mut self) {
        self.pool.clear();
        self.spare_pages.clear();
    }
}
