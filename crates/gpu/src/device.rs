//! Which device there is, and what goes wrong with it.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use cubecl::{
    Device, MemoryPoolReport, MemoryScope,
    bytes::Bytes,
    client::Client,
    device::DeviceUnavailable,
    server::Handle,
    wgpu::{Metal, RuntimeOptions, Vulkan, WgpuDevice, WgpuDeviceKind, WgpuRuntime, try_init_setup, wgpu},
};
use tritrain_backend::{Cpu, CpuError};

use crate::{
    Tiles,
    launch::{Buffer, arg},
};

/// A kind of device to compute on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Choice {
    /// A graphics processor through Vulkan, one with memory of its own first.
    Vulkan,
    /// A graphics processor through Metal.
    Metal,
    /// One of NVIDIA through CUDA.
    Cuda,
    /// One of AMD through HIP.
    Hip,
    /// A software implementation of Vulkan, for tests: it computes on the processor.
    Software,
}

/// The device that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adapter {
    /// Name of the device.
    pub name: String,
    /// Name and version of its driver.
    pub driver: String,
    /// Programming interface, "Vulkan" for one.
    pub api: String,
    /// What kind of device it is.
    pub class: Class,
}

/// Kinds of devices, which differ in what is fast on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// A graphics processor with memory of its own.
    Discrete,
    /// One that shares the memory of the processor.
    Integrated,
    /// A program that computes on the processor.
    Software,
}

/// Why there is no GPU to compute on, or none any more.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// No device of the kind.
    #[error("no {wanted} device: {reason}; `tritrain devices` lists what there is")]
    None {
        /// What was asked for.
        wanted: &'static str,
        /// What the driver said.
        reason: String,
    },
    /// The host part of the backend.
    #[error(transparent)]
    Host(#[from] CpuError),
}

/// Backend on one GPU.
#[derive(Clone)]
pub struct Gpu {
    pub(crate) client: Client,
    pub(crate) adapter: Arc<Adapter>,
    pub(crate) tiles: Tiles,
    /// Where it is reached through graphics.
    wgpu: Option<wgpu::Device>,
    /// Conversions that happen once in a while, on the host.
    pub(crate) host: Arc<Cpu>,
    /// Where the number is that says whether operations that have a gate do anything.
    gate: (Buffer, usize),
    waits: Arc<AtomicU64>,
    fault: Arc<First>,
    #[cfg(feature = "emit")]
    pub(crate) watch: Option<Arc<crate::emit::Watch>>,
    #[cfg(feature = "emit")]
    pub(crate) notes: Option<Arc<crate::record::Notes>>,
}

/// What went wrong.
#[derive(Clone)]
enum Fault {
    /// There is no memory for what was asked for.
    Memory,
    /// In words.
    Other(String),
}

/// The first thing that went wrong, if anything did.
type First = Mutex<Option<Fault>>;

/// Those of all backends on a device.
type Firsts = Arc<Mutex<Vec<Weak<First>>>>;

/// A device that has been started, which happens once in a process.
#[derive(Clone)]
struct Started {
    choice: Choice,
    client: Client,
    adapter: Arc<Adapter>,
    wgpu: Option<wgpu::Device>,
    faults: Firsts,
}

static STARTED: Mutex<Vec<Started>> = Mutex::new(Vec::new());

impl Choice {
    /// The way to graphics processors that this system has.
    pub const NATIVE: Choice = if cfg!(target_vendor = "apple") { Choice::Metal } else { Choice::Vulkan };

    /// The ways to graphics processors that this program was built with, in the order in which they are tried.
    pub const WAYS: &[Choice] = &[
        #[cfg(feature = "cuda")]
        Choice::Cuda,
        #[cfg(feature = "hip")]
        Choice::Hip,
        Choice::NATIVE,
    ];
}

impl Gpu {
    /// The first graphics processor that is found.
    ///
    /// # Errors
    /// There is none; why the last of the [ways](Choice::WAYS) led to none.
    pub fn any() -> Result<Gpu, GpuError> {
        let (last, before) = Choice::WAYS.split_last().unwrap_or((&Choice::NATIVE, &[]));
        before.iter().find_map(|choice| Gpu::new(*choice).ok()).map_or_else(|| Gpu::new(*last), Ok)
    }

    /// Starts a device, or takes the one that was started before.
    ///
    /// # Errors
    /// There is none of the kind.
    pub fn new(choice: Choice) -> Result<Gpu, GpuError> {
        let Started { client, adapter, wgpu, faults, .. } = start(choice)?;
        let fault = Arc::<First>::default();
        let mut faults = faults.lock().unwrap_or_else(PoisonError::into_inner);
        faults.retain(|fault| fault.strong_count() > 0);
        faults.push(Arc::downgrade(&fault));
        let open = arg(&client.create_from_slice(&1.0f32.to_le_bytes()), 1);
        Ok(Gpu {
            client,
            gate: (open, 0),
            tiles: Tiles::of(adapter.class),
            adapter,
            wgpu,
            host: Arc::new(Cpu::new(1)?),
            waits: Arc::default(),
            fault,
            #[cfg(feature = "emit")]
            watch: None,
            #[cfg(feature = "emit")]
            notes: None,
        })
    }

    /// The device in use.
    pub fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// Loses the device, as a driver may: for tests of what happens then.
    #[doc(hidden)]
    pub fn lose(&self) {
        self.wgpu.iter().for_each(wgpu::Device::destroy);
    }

    /// Takes all memory of the device until what is returned is dropped, as another program may: likewise.
    #[doc(hidden)]
    pub fn fill(&self) -> Vec<crate::Floats> {
        const WORDS: usize = 30 << 20;
        let mut all = Vec::new();
        while self.first_fault().is_none() {
            all.push(self.unset(WORDS));
            // The driver is asked when this arrives.
            self.client.flush().unwrap_or_else(|error| self.note(Fault::Other(error.to_string())));
        }
        all
    }

    /// The gate of operations that have one: a number of a buffer that is not zero where they do what they are for.
    pub(crate) fn gate(&self) -> (Buffer, usize) {
        self.gate.clone()
    }

    /// The same backend with another gate.
    pub(crate) fn behind(&self, gate: (Buffer, usize)) -> Gpu {
        Gpu { gate, ..self.clone() }
    }

    /// How often the host waited for the device.
    pub fn waits(&self) -> u64 {
        self.waits.load(Relaxed)
    }

    /// Waits, then gives the bytes of a buffer; zeros where the device failed, which is noted.
    pub(crate) fn read(&self, handle: &Handle, len: usize) -> Vec<u8> {
        #[cfg(feature = "emit")]
        if let Some(bytes) = self.made_up(len) {
            return bytes;
        }
        match self.read_all(vec![handle.clone()]).first() {
            Some(bytes) => bytes[..len].to_vec(),
            None => vec![0; len],
        }
    }

    /// Waits once, then gives the bytes of some buffers; of none where the device failed, which is noted.
    pub(crate) fn read_all(&self, handles: Vec<Handle>) -> Vec<Bytes> {
        self.waits.fetch_add(1, Relaxed);
        #[cfg(feature = "emit")]
        if let Some(bytes) = self.made_up(MADE_UP) {
            return handles.iter().map(|_| Bytes::from_bytes_vec(bytes.clone())).collect();
        }
        self.client.read(handles).unwrap_or_else(|error| {
            self.note(Fault::Other(error.to_string()));
            Vec::new()
        })
    }

    /// Bytes of the largest buffer that kernels may be given.
    pub(crate) fn largest_buffer(&self) -> u64 {
        self.client.properties().memory.max_page_size
    }

    /// Whether the device takes a buffer of so many words. That it does not is a fault: nothing that would be
    /// computed with it is to be used.
    pub(crate) fn holds(&self, words: usize) -> bool {
        if self.is_noting() {
            return true;
        }
        let (bytes, most) = (4 * words as u64, self.largest_buffer());
        if bytes > most {
            let what =
                format!("a buffer of {bytes} bytes, of which this device takes at most {most}; {SMALLER}");
            self.note(Fault::Other(what));
        }
        bytes <= most
    }

    /// Whether launches are noted and nothing is computed, so that no buffer needs memory.
    pub(crate) fn is_noting(&self) -> bool {
        #[cfg(feature = "emit")]
        return self.notes.is_some();
        #[cfg(not(feature = "emit"))]
        false
    }

    /// Keeps the first thing that goes wrong.
    fn note(&self, fault: Fault) {
        note(&self.fault, fault);
    }

    /// What went wrong on the device, if anything did.
    pub(crate) fn first_fault(&self) -> Option<String> {
        let fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Some(self.words(fault?))
    }

    /// The same, and forgets it.
    pub(crate) fn take_fault(&self) -> Option<String> {
        let fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner).take();
        Some(self.words(fault?))
    }

    fn words(&self, fault: Fault) -> String {
        match fault {
            Fault::Memory => {
                let report = self.client.memory_report(MemoryScope::Device);
                let pools = report.streams.iter().flat_map(|stream| {
                    let pools = &stream.pools;
                    pools.dynamic.iter().chain([&pools.persistent, &pools.dedicated])
                });
                let asked: u64 = pools.map(|pool: &MemoryPoolReport| pool.usage.bytes_reserved).sum();
                format!(
                    "out of device memory: it does not hold the {asked} bytes asked for in all; {SMALLER}"
                )
            }
            Fault::Other(words) => words,
        }
    }
}

fn note(first: &First, fault: Fault) {
    first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(fault);
}

/// Bytes of any buffer that is read where launches are noted.
#[cfg(feature = "emit")]
const MADE_UP: usize = 1 << 20;

/// What to do where memory is short.
const SMALLER: &str = "take a smaller run.batch or run.micro_batch, run.recompute = true, or --device cpu";

/// Tells all backends on a device of what goes wrong outside their calls: by default that would be a panic on a
/// thread of the driver.
fn watch(device: &wgpu::Device) -> Firsts {
    let faults = Firsts::default();
    let of = Arc::clone(&faults);
    device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
        let fault = match error {
            wgpu::Error::OutOfMemory { .. } => Fault::Memory,
            other => Fault::Other(other.to_string()),
        };
        for first in of.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade) {
            note(&first, fault.clone());
        }
    }));
    faults
}

impl Adapter {
    fn of(info: &wgpu::AdapterInfo) -> Adapter {
        Adapter {
            name: info.name.clone(),
            driver: format!("{} {}", info.driver, info.driver_info).trim().into(),
            api: format!("{:?}", info.backend),
            class: match info.device_type {
                wgpu::DeviceType::Cpu => Class::Software,
                wgpu::DeviceType::IntegratedGpu => Class::Integrated,
                _ => Class::Discrete,
            },
        }
    }
}

impl fmt::Display for Adapter {
    /// The device in a few words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}", self.name, self.api)?;
        if !self.driver.is_empty() {
            write!(f, ", {}", self.driver)?;
        }
        f.write_str(if self.class == Class::Software { ", software, for tests)" } else { ")" })
    }
}

/// The first device of a choice: the one that was started before, if any was.
fn start(choice: Choice) -> Result<Started, GpuError> {
    const GPUS: &[WgpuDeviceKind] = &[WgpuDeviceKind::DiscreteGpu(0), WgpuDeviceKind::IntegratedGpu(0)];
    let (kinds, wanted) = match choice {
        Choice::Vulkan => (GPUS, "Vulkan"),
        Choice::Metal => (GPUS, "Metal"),
        Choice::Software => (&[WgpuDeviceKind::Cpu][..], "software Vulkan"),
        Choice::Cuda | Choice::Hip => (&[][..], if choice == Choice::Cuda { "CUDA" } else { "HIP" }),
    };
    if cfg!(feature = "vulkan") && choice == Choice::Software {
        // Mesa's crashes on what CubeCL's SPIR-V does with shared memory.
        return Err(GpuError::None {
            wanted,
            reason: "this program was built with the feature vulkan".into(),
        });
    }
    let mut all = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(started) = all.iter().find(|started| started.choice == choice) {
        return Ok(started.clone());
    }
    let mut reason = String::new();
    if kinds.is_empty() {
        let (client, adapter) =
            compute(choice, wanted).map_err(|reason| GpuError::None { wanted, reason })?;
        let started =
            Started { choice, client, adapter: Arc::new(adapter), wgpu: None, faults: Firsts::default() };
        all.push(started.clone());
        return Ok(started);
    }
    for kind in kinds {
        let device = WgpuDevice::new(kind.clone());
        let setup = match choice {
            Choice::Metal => try_init_setup::<Metal>(&device, RuntimeOptions::default()),
            _ => try_init_setup::<Vulkan>(&device, RuntimeOptions::default()),
        };
        match setup {
            Ok(setup) => {
                let adapter = Arc::new(Adapter::of(&setup.adapter.get_info()));
                let faults = watch(&setup.device);
                let client = client(&device);
                let started = Started { choice, client, adapter, wgpu: Some(setup.device), faults };
                all.push(started.clone());
                return Ok(started);
            }
            Err(error) => reason = in_short(&error.to_string()).to_owned(),
        }
    }
    Err(GpuError::None { wanted, reason })
}

/// The first device of a runtime that is for computing alone, or why there is none.
fn compute(choice: Choice, api: &str) -> Result<(Client, Adapter), String> {
    let device = if choice == Choice::Cuda { Device::cuda(0) } else { Device::rocm(0) };
    let client = device.map(|device| device.client()).map_err(|why| match why {
        DeviceUnavailable::NotLinked(_) => {
            format!("this program was built without {api}, the feature `{}`", api.to_lowercase())
        }
        DeviceUnavailable::NoSuchDevice { .. } => "its driver is not there or knows no device".into(),
    })?;
    let name = client.properties().identity.name.to_string();
    Ok((client, Adapter { name, driver: String::new(), api: api.into(), class: Class::Discrete }))
}

/// What a runtime says of a device that is not there, without the device and the list of all others.
fn in_short(reason: &str) -> &str {
    let reason = reason.split_once(", adapters [").map_or(reason, |(before, _)| before);
    reason.rsplit_once("}: ").map_or(reason, |(_, behind)| behind)
}

fn client(device: &WgpuDevice) -> Client {
    use cubecl::__private::Runtime;
    WgpuRuntime::<cubecl::wgpu::AutoCompiler>::client(device)
}

#[cfg(test)]
mod tests {
    #[test]
    fn reasons_are_short() {
        let long = "No adapter available for WgpuDevice { kind: IntegratedGpu(0), backend: Vulkan }: No Integrated GPU \
                    device found, adapters [AdapterInfo { name: \"llvmpipe\" }]";
        assert_eq!(super::in_short(long), "No Integrated GPU device found");
        assert_eq!(super::in_short("no loader"), "no loader");
    }
}
