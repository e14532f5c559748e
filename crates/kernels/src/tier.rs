//! The dispatch point: which instructions a kernel may use, and the threads it runs on.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rayon::prelude::*;

use crate::{lines::grow, strips::Parts, team::Team};

/// A set of instructions, known to exist on this machine.
///
/// The field is private: a `Tier` above scalar can only come from [`Tier::available`], which asked the
/// processor. That is what makes calling the `target_feature` functions sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tier(Level);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Scalar,
    /// NEON with dot products. Elsewhere tests emulate its instructions, see `neon.rs`.
    #[cfg(any(target_arch = "aarch64", test))]
    Neon,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Amx,
}

impl Tier {
    /// Plain Rust, on every machine.
    pub const SCALAR: Tier = Tier(Level::Scalar);

    /// Every tier there is, slowest first, and what this machine lacks for those it cannot run.
    pub fn known() -> Vec<(&'static str, Result<Tier, String>)> {
        let mut tiers = vec![(Tier::SCALAR.name(), Ok(Tier::SCALAR))];
        let tier = |level: Level, needs: &[(&str, bool)]| {
            let missing: Vec<&str> = needs.iter().filter(|(_, here)| !here).map(|(name, _)| *name).collect();
            let found = if missing.is_empty() {
                Ok(Tier(level))
            } else {
                Err(format!("the processor lacks {}", missing.join(", ")))
            };
            (Tier(level).name(), found)
        };
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx2 = [("AVX2", has!("avx2")), ("FMA", has!("fma"))];
            let avx_vnni = [avx2[0], avx2[1], ("AVX-VNNI", has!("avxvnni"))];
            let wide = has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl");
            let avx512 =
                [avx2[0], avx2[1], ("AVX-512 F, BW, DQ and VL", wide), ("AVX-512 VNNI", has!("avx512vnni"))];
            let amx =
                [&avx512[..], &[("AMX-INT8 (or the system does not lend it)", crate::amx::available())]]
                    .concat();
            tiers.extend([
                tier(Level::Avx2, &avx2),
                tier(Level::AvxVnni, &avx_vnni),
                tier(Level::Avx512, &avx512),
                tier(Level::Amx, &amx),
            ]);
        }
        #[cfg(target_arch = "aarch64")]
        tiers
            .push(tier(Level::Neon, &[("dot products", std::arch::is_aarch64_feature_detected!("dotprod"))]));
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let _ = tier;
        tiers
    }

    /// Every tier this machine can run, slowest first.
    pub fn available() -> Vec<Tier> {
        Tier::known().into_iter().filter_map(|(_, tier)| tier.ok()).collect()
    }

    /// What the tests of integer kernels compare: the tiers of this machine, and the one they emulate.
    #[cfg(test)]
    pub(crate) fn tested() -> Vec<Tier> {
        let mut tiers = Tier::available();
        if cfg!(not(target_arch = "aarch64")) {
            tiers.push(Tier(Level::Neon));
        }
        tiers
    }

    /// The fastest tier, or the one that the environment variable `TRITRAIN_TIER` names.
    ///
    /// # Errors
    /// The variable names a tier that is unknown or that this machine lacks.
    pub fn detect() -> Result<Tier, ContextError> {
        let tiers = Tier::available();
        let Ok(wanted) = std::env::var("TRITRAIN_TIER") else {
            return Ok(tiers[tiers.len() - 1]);
        };
        tiers.iter().copied().find(|tier| tier.name() == wanted).ok_or_else(|| ContextError::Tier {
            found: wanted,
            available: tiers.iter().map(|tier| tier.name()).collect::<Vec<_>>().join(", "),
        })
    }

    /// Name in logs and in `TRITRAIN_TIER`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Scalar => "scalar",
            #[cfg(any(target_arch = "aarch64", test))]
            Level::Neon => "neon-dotprod",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::AvxVnni => "avx-vnni",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512-vnni",
            #[cfg(target_arch = "x86_64")]
            Level::Amx => "amx-int8",
        }
    }

    /// Whether there are 32 registers of sixteen f32.
    pub(crate) fn wide(self) -> bool {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Amx => true,
            _ => false,
        }
    }

    pub(crate) fn level(self) -> Level {
        self.0
    }
}

/// What a thread holds while it multiplies: the tile registers, where a tier has such.
pub(crate) struct Registers {
    #[cfg(target_arch = "x86_64")]
    pub(crate) tiles: Option<crate::amx::Tiles>,
}

impl Registers {
    pub(crate) fn of(#[cfg_attr(not(target_arch = "x86_64"), expect(unused))] tier: Tier) -> Registers {
        Registers {
            #[cfg(target_arch = "x86_64")]
            tiles: (tier.level() == Level::Amx).then(crate::amx::Tiles::new),
        }
    }
}

/// Why kernels cannot run as asked.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// `TRITRAIN_TIER` names no tier of this machine.
    #[error("TRITRAIN_TIER is {found:?}, but this machine has: {available}; unset it to take the fastest")]
    Tier {
        /// What the variable holds.
        found: String,
        /// What would do.
        available: String,
    },
    /// The operating system refused the threads.
    #[error("cannot start {threads} threads: {reason}")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// What the system said.
        reason: String,
    },
}

/// What every kernel runs with: a tier and a pool of threads.
#[derive(Debug)]
pub struct Context {
    tier: Tier,
    pool: rayon::ThreadPool,
    /// Working memory of kernels that are not running.
    spare: Mutex<Vec<Vec<f32>>>,
    /// Working memory of tasks: for each thread of the pool, and for one outside.
    desks: Vec<Mutex<Vec<f32>>>,
    /// The team that the thread of this number leads, while there is one.
    team: RwLock<Option<(usize, Arc<Team>)>>,
}

impl Context {
    /// A pool of `threads` threads (0: one per core) running kernels of `tier`.
    ///
    /// # Errors
    /// The threads cannot be started.
    pub fn new(tier: Tier, threads: usize) -> Result<Context, ContextError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|n| format!("kernel-{n}"))
            .build()
            .map_err(|error| ContextError::Threads { threads, reason: error.to_string() })?;
        // Every thread has started on return: what that allocates is no part of a kernel.
        pool.broadcast(|_| ());
        let desks = (0..=pool.current_num_threads()).map(|_| Mutex::default()).collect();
        Ok(Context { tier, pool, spare: Mutex::default(), desks, team: RwLock::default() })
    }

    /// The tier kernels run on.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// Number of threads in the pool.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Runs `work` on a thread of the pool: kernels that it calls start without a change of threads. With one thread
    /// alone, work and kernels run where they are called.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        if self.alone() { work() } else { self.pool.install(work) }
    }

    /// Whether there is nothing to share work with.
    fn alone(&self) -> bool {
        self.threads() == 1
    }

    /// [`Context::run`], with the other threads awake all the time: many short kernels in a row start
    /// sooner. One at a time; a second one, or one inside another, is an ordinary run.
    pub fn run_awake<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.install(|| {
            let leader = self.pool.current_thread_index();
            let (Some(leader), true) = (leader, self.threads() > 1) else { return work() };
            let team = Arc::new(Team::new(self.threads()));
            {
                let mut place = self.team.write().unwrap_or_else(PoisonError::into_inner);
                if place.is_some() {
                    drop(place);
                    return work();
                }
                *place = Some((leader, Arc::clone(&team)));
            }
            /// Lets the team go, also when the work panics.
            struct Over<'a>(&'a Context, Arc<Team>);
            impl Drop for Over<'_> {
                fn drop(&mut self) {
                    *self.0.team.write().unwrap_or_else(PoisonError::into_inner) = None;
                    self.1.dissolve();
                }
            }
            rayon::in_place_scope(|scope| {
                let _over = Over(self, Arc::clone(&team));
                for member in 1..self.threads() {
                    let team = Arc::clone(&team);
                    scope.spawn(move |_| team.follow(member));
                }
                work()
            })
        })
    }

    /// The team of this thread, if it leads one.
    fn led(&self) -> Option<Arc<Team>> {
        let place = self.team.read().unwrap_or_else(PoisonError::into_inner);
        let (leader, team) = place.as_ref()?;
        (self.pool.current_thread_index() == Some(*leader)).then(|| Arc::clone(team))
    }

    /// Inside [`Context::run_awake`]: `memory` is what the next long kernel reads, so that threads without
    /// work fetch it.
    pub(crate) fn expect(&self, memory: &[u8]) {
        if let Some(team) = self.led() {
            team.expect(memory);
        }
    }

    /// Runs `work` once on every thread at the same time, with the number of the thread.
    pub(crate) fn everywhere<R: Send>(&self, work: impl Fn(usize) -> R + Sync) -> Vec<R> {
        self.pool.broadcast(|thread| work(thread.index()))
    }

    /// Runs `work` on every chunk of `chunk` elements of `out`, with the chunk's index.
    ///
    /// The chunk length is the caller's, a function of sizes: results cannot depend on the pool.
    pub(crate) fn chunks<T: Send>(
        &self,
        out: &mut [T],
        chunk: usize,
        work: impl Fn(usize, &mut [T]) + Sync + Send,
    ) {
        let parts = Parts::new(out, chunk);
        // SAFETY: every part goes to one task.
        self.tasks(parts.count(), |index| work(index, unsafe { parts.get(index) }));
    }

    /// Like [`Context::chunks`] over two slices, as far as both have pieces.
    pub(crate) fn chunks2<A: Send, B: Send>(
        &self,
        (a, chunk_a): (&mut [A], usize),
        (b, chunk_b): (&mut [B], usize),
        work: impl Fn(usize, &mut [A], &mut [B]) + Sync + Send,
    ) {
        let (a, b) = (Parts::new(a, chunk_a), Parts::new(b, chunk_b));
        // SAFETY: every part goes to one task.
        self.tasks(a.count().min(b.count()), |index| unsafe { work(index, a.get(index), b.get(index)) });
    }

    /// Like [`Context::chunks2`] over three slices.
    pub(crate) fn chunks3<A: Send, B: Send, C: Send>(
        &self,
        (a, chunk_a): (&mut [A], usize),
        (b, chunk_b): (&mut [B], usize),
        (c, chunk_c): (&mut [C], usize),
        work: impl Fn(usize, &mut [A], &mut [B], &mut [C]) + Sync + Send,
    ) {
        let (a, b, c) = (Parts::new(a, chunk_a), Parts::new(b, chunk_b), Parts::new(c, chunk_c));
        // SAFETY: every part goes to one task.
        self.tasks(a.count().min(b.count()).min(c.count()), |index| unsafe {
            work(index, a.get(index), b.get(index), c.get(index))
        });
    }

    /// Runs `work` on every index in `0..count`.
    pub(crate) fn tasks(&self, count: usize, work: impl Fn(usize) + Sync + Send) {
        if count <= 1 || self.alone() {
            (0..count).for_each(work);
        } else if let Some(team) = self.led() {
            team.lead(count, &work);
        } else {
            self.pool.install(|| (0..count).into_par_iter().for_each(work));
        }
    }

    /// Runs `work` on every index in `0..count`, with `len` floats of unknown contents each.
    ///
    /// Every thread has them, so that no later call allocates, whichever thread takes which index.
    /// `work` starts no other tasks.
    pub(crate) fn each(&self, count: usize, len: usize, work: impl Fn(usize, &mut [f32]) + Sync + Send) {
        let desk = |at: usize| self.desks[at].lock().unwrap_or_else(PoisonError::into_inner);
        for at in 0..self.desks.len() {
            grow(&mut desk(at), len);
        }
        let outside = self.desks.len() - 1;
        let one = |index: usize| {
            let mut floats = desk(self.pool.current_thread_index().unwrap_or(outside));
            work(index, &mut floats[..len]);
        };
        self.tasks(count, one);
    }

    /// Lends `work` a slice of `len` floats with unknown contents.
    ///
    /// The memory is kept, last lent first, so the same calls in the same order allocate once. For the
    /// thread that starts a kernel, not for its tasks, whose order is never the same.
    pub(crate) fn with_floats<R>(&self, len: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
        let spare = || self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let mut floats = spare().pop().unwrap_or_default();
        grow(&mut floats, len);
        let result = work(&mut floats[..len]);
        spare().push(floats);
        result
    }
}

/// Declares a float kernel: one body, compiled once per tier, dispatched by a leading [`Tier`].
///
/// Everything the body calls must be `#[inline(always)]`, or it would be compiled without the tier's
/// instructions (correct, but `mul_add` becomes a library call).
macro_rules! tiered {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name(tier: $crate::Tier, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body

            /// # Safety
            /// The processor must have AVX2 and FMA.
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2($($arg: $ty),*) $(-> $ret)? {
                body($($arg),*)
            }

            /// # Safety
            /// The processor must have AVX2, FMA and the AVX-512 extensions named.
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
            unsafe fn avx512($($arg: $ty),*) $(-> $ret)? {
                body($($arg),*)
            }

            match tier.level() {
                $crate::tier::Level::Scalar => body($($arg),*),
                // Every aarch64 has NEON and fused multiply-adds, and dot products are no floats.
                #[cfg(any(target_arch = "aarch64", test))]
                $crate::tier::Level::Neon => body($($arg),*),
                // SAFETY: a tier of these levels exists only where both features were detected.
                #[cfg(target_arch = "x86_64")]
                $crate::tier::Level::Avx2 | $crate::tier::Level::AvxVnni => unsafe { avx2($($arg),*) },
                // SAFETY: tiers of these levels exist only where all of them were detected.
                #[cfg(target_arch = "x86_64")]
                $crate::tier::Level::Avx512 | $crate::tier::Level::Amx => unsafe { avx512($($arg),*) },
            }
        }
    };
}
