//! Threads that wait for tasks without sleeping: for work that is over before a sleeping thread wakes up.
//!
//! One token takes some sixty products of ten microseconds. Each member has tasks of its own, so that
//! members meet in the same line of memory only when a job begins and ends, or when one that has done its
//! share helps another.

use std::{
    hint::spin_loop,
    ptr,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering},
};

use crate::lines::{LINE, prefetch};

/// Bits of the number of tasks in a job.
const BITS: u32 = 20;
/// Tasks a job may have.
pub(crate) const MOST: usize = (1 << BITS) - 1;

/// A job: what is done for each index.
struct Job<'a>(&'a (dyn Fn(usize) + Sync));

/// Tasks of one member, on lines of memory of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Member {
    /// Job, end of its tasks, the next of them, from the upper bits down.
    word: AtomicU64,
    /// Tasks this member has finished, of all jobs.
    finished: AtomicUsize,
}

impl Member {
    /// Claims a task, if there is one: a member its next, another the last, so that each goes through memory
    /// in one direction.
    fn claim(&self, own: bool) -> Option<usize> {
        let word = self.word.load(Ordering::Acquire);
        let mask = MOST as u64;
        let (end, next) = (word >> BITS & mask, word & mask);
        let (index, without) =
            if own { (next, word + 1) } else { (end.wrapping_sub(1), word.wrapping_sub(1 << BITS)) };
        let claimed = next < end
            && self.word.compare_exchange(word, without, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        claimed.then_some(index as usize)
    }
}

/// Memory that will be read soon. Only ever fetched, which is harmless wherever it points.
#[derive(Debug, Default)]
struct Expected {
    address: AtomicUsize,
    len: AtomicUsize,
}

/// How far a follower has fetched what is expected.
#[derive(Debug, Default)]
struct Fetched {
    address: usize,
    next: usize,
}

/// Lines that it fetches between two looks for tasks.
const LINES: usize = 8;
/// Bytes of its share that a follower fetches: what fits its own cache beside other things.
const MOST_AHEAD: usize = 1 << 19;

/// The place where a leader, member 0, leaves jobs for its followers.
#[derive(Debug)]
pub(crate) struct Team {
    members: Box<[Member]>,
    job: AtomicPtr<Job<'static>>,
    expected: Expected,
    over: AtomicBool,
    /// Whether a job is running: one within another is done by whoever starts it.
    busy: AtomicBool,
}

/// Counts a task as finished, whatever becomes of it: nobody waits for ever.
struct Finish<'a>(&'a AtomicUsize);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

impl Team {
    /// A team of `members`, the leader among them.
    pub(crate) fn new(members: usize) -> Team {
        Team {
            members: (0..members).map(|_| Member::default()).collect(),
            job: AtomicPtr::default(),
            expected: Expected::default(),
            over: AtomicBool::new(false),
            busy: AtomicBool::new(false),
        }
    }

    /// Takes tasks as member `me` until the team is dissolved, and between them fetches what is expected.
    pub(crate) fn follow(&self, me: usize) {
        let mut fetched = Fetched::default();
        while !self.over.load(Ordering::Acquire) {
            if !self.take(me) && !self.fetch(me, &mut fetched) {
                spin_loop();
            }
        }
    }

    /// Says that a job will read `memory`, each member its share from the first byte to the last.
    pub(crate) fn expect(&self, memory: &[u8]) {
        self.expected.len.store(memory.len(), Ordering::Relaxed);
        self.expected.address.store(memory.as_ptr().addr(), Ordering::Relaxed);
    }

    /// Fetches some lines of the member's share of what is expected; whether there were any.
    fn fetch(&self, me: usize, fetched: &mut Fetched) -> bool {
        let [address, len] =
            [&self.expected.address, &self.expected.len].map(|at| at.load(Ordering::Relaxed));
        let [start, end] = [me, me + 1].map(|share| len / LINE * share / self.members.len() * LINE);
        if address != fetched.address {
            *fetched = Fetched { address, next: start };
        }
        let more = fetched.next < end.min(start + MOST_AHEAD);
        if more {
            (0..LINES).for_each(|line| prefetch(address.wrapping_add(fetched.next + line * LINE)));
            fetched.next += LINES * LINE;
        }
        more
    }

    /// Claims one of the member's own tasks, or else one of another's.
    fn claim(&self, me: usize) -> Option<usize> {
        let count = self.members.len();
        (0..count).find_map(|step| self.members[(me + step) % count].claim(step == 0))
    }

    /// Does one task, if there is one.
    fn take(&self, me: usize) -> bool {
        let Some(index) = self.claim(me) else { return false };
        let _finish = Finish(&self.members[me].finished);
        // SAFETY: a task of a job was claimed and is not finished, so the leader is still in `lead` and the
        // job on its stack; the pointer was written before the word.
        let job = unsafe { &*self.job.load(Ordering::Acquire) };
        (job.0)(index);
        true
    }

    /// Tasks finished, of all jobs.
    fn finished(&self) -> usize {
        self.members.iter().fold(0, |sum, member| sum.wrapping_add(member.finished.load(Ordering::Acquire)))
    }

    /// Does `work` for every index in `0..count` with the followers. A job inside a job is not shared.
    pub(crate) fn lead(&self, count: usize, work: &(dyn Fn(usize) + Sync)) {
        if count == 0 || count > MOST || self.busy.swap(true, Ordering::AcqRel) {
            (0..count).for_each(work);
            return;
        }
        let job = Job(work);
        let all = self.finished().wrapping_add(count);
        self.job.store(ptr::from_ref(&job).cast::<Job<'static>>().cast_mut(), Ordering::Release);
        let shares = self.members.len();
        // Those who have to be told begin first.
        for (share, member) in self.members.iter().enumerate().rev() {
            let number = (member.word.load(Ordering::Relaxed) >> (2 * BITS)).wrapping_add(1);
            let [start, end] = [share, share + 1].map(|share| (count * share / shares) as u64);
            member.word.store(number << (2 * BITS) | end << BITS | start, Ordering::Release);
        }
        /// Waits for the tasks that others took, also when one of the leader's own panics.
        struct Wait<'a>(&'a Team, usize);
        impl Drop for Wait<'_> {
            fn drop(&mut self) {
                let Wait(team, all) = *self;
                while team.finished() != all {
                    // After a panic nobody does the rest.
                    match team.claim(0) {
                        Some(_) => drop(Finish(&team.members[0].finished)),
                        None => spin_loop(),
                    }
                }
                team.busy.store(false, Ordering::Release);
            }
        }
        let wait = Wait(self, all);
        // A claim may fail because another thread came first.
        while self.finished() != all {
            if !self.take(0) {
                spin_loop();
            }
        }
        drop(wait);
    }

    /// Lets the followers go.
    pub(crate) fn dissolve(&self) {
        self.over.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_of_every_job_is_done_once() {
        let team = Team::new(4);
        std::thread::scope(|scope| {
            for member in 1..4 {
                let team = &team;
                scope.spawn(move || team.follow(member));
            }
            let memory = vec![0u8; 10_007];
            for round in 0..2000usize {
                // Whatever is fetched meanwhile, also what ends between two lines.
                team.expect(&memory[round % 7..]);
                let done: Vec<AtomicUsize> = (0..round % 40).map(|_| AtomicUsize::new(0)).collect();
                team.lead(done.len(), &|index| {
                    // A job inside a job.
                    team.lead(2, &|_| {
                        done[index].fetch_add(1, Ordering::Relaxed);
                    });
                });
                assert!(done.iter().all(|count| count.load(Ordering::Relaxed) == 2), "round {round}");
            }
            team.dissolve();
        });
    }

    #[test]
    fn a_panic_reaches_whoever_waits() {
        let team = Team::new(2);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| team.follow(1)));
                });
                struct Dissolve<'a>(&'a Team);
                impl Drop for Dissolve<'_> {
                    fn drop(&mut self) {
                        self.0.dissolve();
                    }
                }
                let _dissolve = Dissolve(&team);
                team.lead(64, &|_| panic!("a kernel's own fault"));
            });
        }));
        assert!(outcome.is_err());
    }
}
