//! The bound, the turns, and what is left when a connection is gone.

use core::sync::atomic::AtomicBool;
use std::task::Wake;

use proptest::prelude::*;

use super::*;

const MIB: usize = 1 << 20;

#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Client {
    account: Account,
    woken: Arc<Flag>,
    waker: Waker,
}

impl Client {
    fn new(budget: &Arc<BufferBudget>) -> Self {
        let woken = Arc::<Flag>::default();
        let waker = Waker::from(Arc::clone(&woken));
        Self { account: Account::new(Arc::clone(budget)), woken, waker }
    }

    fn charge(&mut self, bytes: usize) -> bool {
        let bytes = self.account.cap(bytes);
        self.account.charge(bytes, &self.waker)
    }

    fn was_woken(&self) -> bool {
        self.woken.0.swap(false, Ordering::Relaxed)
    }
}

fn budget(total: usize, connections: usize) -> Arc<BufferBudget> {
    Arc::new(BufferBudget::new(total, connections, MIB))
}

#[test]
fn however_many_hold_all_they_can_the_bound_holds_and_the_next_one_has_its_share() {
    let budget = budget(256 * MIB, 1024);
    // Each takes in pieces whatever it can get, and gives nothing back.
    let mut hostile: Vec<_> = (0..200).map(|_| Client::new(&budget)).collect();
    for client in &mut hostile {
        while client.charge(MIB / 16) {}
    }
    assert!(hostile.iter().map(|client| client.account.used).sum::<usize>() <= 256 * MIB);
    assert!(hostile[0].account.used <= 128 * MIB, "no one gets more than it leaves");
    let mut working = Client::new(&budget);
    assert!(working.charge(budget.share));
    // Those that wait for what they hold themselves are not before it.
    assert!(!working.charge(4 * MIB));
    hostile.remove(0);
    assert!(working.was_woken());
    assert!(working.charge(4 * MIB));
}

#[test]
fn the_longest_payload_is_served_however_small_the_budget_is() {
    let budget = budget(0, 1000);
    let mut client = Client::new(&budget);
    assert!(client.charge(MIB));
    client.account.release(MIB);
    // And what may need more than there is gets all there is.
    assert!(client.charge(usize::MAX));
    let mut other = Client::new(&budget);
    assert!(!other.charge(MIB));
    client.account.release(client.account.used);
    assert!(other.was_woken());
    assert!(other.charge(MIB));
}

#[test]
fn connections_that_hold_nothing_are_served_in_turn_and_before_those_that_hold_much() {
    let budget = budget(10 * MIB, 10);
    let mut greedy = Client::new(&budget);
    while greedy.charge(MIB / 4) {}
    let mut large = Client::new(&budget);
    let mut small = Client::new(&budget);
    // There is room for the small one, but it is not its turn.
    assert!(!large.charge(5 * MIB));
    assert!(!small.charge(2 * MIB));
    greedy.account.release(greedy.account.used);
    // It has been waiting for more itself.
    assert!(!large.was_woken());
    greedy.was_woken();
    greedy.account = Account::new(Arc::clone(&budget));
    assert!(large.was_woken() && !greedy.was_woken());
    assert!(large.charge(5 * MIB));
}

#[test]
fn a_working_connection_does_not_wait_behind_all_that_only_ask() {
    let budget = budget(10 * MIB, 10);
    let mut holding = Client::new(&budget);
    assert!(holding.charge(budget.rest));
    let mut asking: Vec<_> = (0..20).map(|_| Client::new(&budget)).collect();
    asking.iter_mut().for_each(|client| assert!(!client.charge(5 * MIB)));
    let mut working = Client::new(&budget);
    working.account.credit(1000);
    assert!(!working.charge(5 * MIB));
    drop(holding);
    let mut turns = 0;
    while !working.charge(5 * MIB) {
        // Whoever has had its turn is given up in the end.
        asking.retain(|client| !client.was_woken());
        turns += 1;
        assert!(turns < 3, "it waits behind all others");
    }
    // And those that only ask have their turns, too.
    working.account.release(5 * MIB);
    working.account.give_back_unused();
    assert!(asking.iter().any(Client::was_woken));
}

#[test]
fn within_its_share_a_connection_never_waits() {
    let budget = budget(4 * MIB, 16);
    let mut greedy = Client::new(&budget);
    assert!(greedy.charge(usize::MAX));
    let mut modest = Client::new(&budget);
    assert!(modest.charge(budget.share));
    assert_eq!(budget.waiting.load(Ordering::Relaxed), 0);
}

#[test]
fn buffers_of_hanging_threads_stay_leased_when_their_connection_is_gone() {
    let budget = budget(4 * MIB, 16);
    let mut client = Client::new(&budget);
    assert!(client.charge(MIB));
    let remainder = client.account.split_off(MIB);
    drop(client);
    assert!(budget.lock().leased > 0);
    drop(remainder);
    assert_eq!(budget.lock().leased, 0);
}

#[derive(Clone, Debug)]
enum Step {
    Charge(usize, usize),
    Release(usize, usize),
    GoIdle(usize),
    Extend(usize, usize),
    Replace(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let client = 0..6_usize;
    let bytes = prop_oneof![Just(1), Just(4096), 1..MIB, 1..4 * MIB];
    prop_oneof![
        6 => (client.clone(), bytes.clone()).prop_map(|(client, bytes)| Step::Charge(client, bytes)),
        4 => (client.clone(), bytes).prop_map(|(client, bytes)| Step::Release(client, bytes)),
        1 => client.clone().prop_map(Step::GoIdle),
        1 => (client.clone(), 1..4 * MIB).prop_map(|(client, bytes)| Step::Extend(client, bytes)),
        1 => client.prop_map(Step::Replace),
    ]
}

proptest! {
    /// Whatever connections do: the bound holds, the sums agree, and no connection waits once the others are gone.
    #[test]
    fn the_bound_holds_and_no_waiter_is_forgotten(
        total in 0..12 * MIB,
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let budget = budget(total, 8);
        let mut clients: Vec<_> = (0..6).map(|_| Client::new(&budget)).collect();
        let mut refused = [None; 6];
        for step in steps {
            match step {
                Step::Charge(index, bytes) => {
                    let bytes = clients[index].account.cap(bytes);
                    let granted = clients[index].charge(bytes);
                    refused[index] = (!granted).then_some(bytes);
                }
                Step::Release(index, bytes) => {
                    let account = &mut clients[index].account;
                    account.release(bytes.min(account.used));
                }
                Step::Extend(index, bytes) => {
                    let account = &mut clients[index].account;
                    prop_assert!(!account.extend(bytes) || account.free() >= bytes);
                }
                Step::GoIdle(index) => clients[index].account.give_back_unused(),
                Step::Replace(index) => {
                    clients[index] = Client::new(&budget);
                    refused[index] = None;
                }
            }
            let pending = |client: &Client| client.account.granted.load(Ordering::Relaxed);
            let leased: usize =
                clients.iter().map(|client| client.account.leased + pending(client)).sum();
            prop_assert_eq!(leased, budget.lock().leased);
            prop_assert!(leased <= budget.rest);
            for client in &clients {
                prop_assert!(client.account.used <= budget.share + client.account.leased);
            }
        }
        for (index, bytes) in refused.into_iter().enumerate() {
            let Some(bytes) = bytes else { continue };
            for (other, client) in clients.iter_mut().enumerate() {
                if other != index {
                    *client = Client::new(&budget);
                }
            }
            let client = &mut clients[index];
            let used = client.account.used;
            client.account.release(used);
            prop_assert!(client.charge(bytes), "{bytes} of {}", budget.rest);
            break;
        }
    }
}
