//! Which device there is, and what goes wrong with it.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use cubecl::{
    bytes::Bytes,
    client::Client,
    server::Handle,
    wgpu::{RuntimeOptions, Vulkan, WgpuDevice, WgpuDeviceKind, WgpuRuntime, try_init_setup, wgpu},
};
use tritrain_backend::{Cpu, CpuError};

/// A kind of device to compute on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Choice {
    /// A graphics processor through Vulkan, one with memory of its own first.
    Vulkan,
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
    /// Whether it is a program rather than a device.
    pub software: bool,
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
pub struct Gpu {
    pub(crate) client: Client,
    pub(crate) adapter: Adapter,
    wgpu: wgpu::Device,
    /// Conversions that happen once in a while, on the host.
    pub(crate) host: Cpu,
    waits: AtomicU64,
    fault: Mutex<Option<String>>,
    #[cfg(feature = "emit")]
    pub(crate) watch: Option<crate::emit::Watch>,
}

/// A device that has been started, which happens once in a process.
#[derive(Clone)]
struct Started {
    choice: Choice,
    device: WgpuDevice,
    adapter: Adapter,
    wgpu: wgpu::Device,
}

static STARTED: Mutex<Vec<Started>> = Mutex::new(Vec::new());

impl Gpu {
    /// Starts a device, or takes the one that was started before.
    ///
    /// # Errors
    /// There is none of the kind.
    pub fn new(choice: Choice) -> Result<Gpu, GpuError> {
        let Started { device, adapter, wgpu, .. } = start(choice)?;
        Ok(Gpu {
            client: client(&device),
            adapter,
            wgpu,
            host: Cpu::new(1)?,
            waits: AtomicU64::new(0),
            fault: Mutex::new(None),
            #[cfg(feature = "emit")]
            watch: None,
        })
    }

    /// The device in use.
    pub fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// Loses the device, as a driver may: for tests of what happens then.
    #[doc(hidden)]
    pub fn lose(&self) {
        self.wgpu.destroy();
    }

    /// How often the host waited for the device.
    pub fn waits(&self) -> u64 {
        self.waits.load(Relaxed)
    }

    /// Waits, then gives the bytes of a buffer; zeros where the device failed, which is noted.
    pub(crate) fn read(&self, handle: &Handle, len: usize) -> Vec<u8> {
        match self.read_all(vec![handle.clone()]).first() {
            Some(bytes) => bytes[..len].to_vec(),
            None => vec![0; len],
        }
    }

    /// Waits once, then gives the bytes of some buffers; of none where the device failed, which is noted.
    pub(crate) fn read_all(&self, handles: Vec<Handle>) -> Vec<Bytes> {
        self.waits.fetch_add(1, Relaxed);
        self.client.read(handles).unwrap_or_else(|error| {
            let mut fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
            fault.get_or_insert_with(|| error.to_string());
            Vec::new()
        })
    }

    /// What went wrong on the device, if anything did.
    pub(crate) fn first_fault(&self) -> Option<String> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Adapter {
    fn of(info: &wgpu::AdapterInfo) -> Adapter {
        Adapter {
            name: info.name.clone(),
            driver: format!("{} {}", info.driver, info.driver_info).trim().into(),
            api: format!("{:?}", info.backend),
            software: info.device_type == wgpu::DeviceType::Cpu,
        }
    }
}

/// The first device of a choice: the one that was started before, if any was.
fn start(choice: Choice) -> Result<Started, GpuError> {
    let (kinds, wanted): (&[WgpuDeviceKind], _) = match choice {
        Choice::Vulkan => (&[WgpuDeviceKind::DiscreteGpu(0), WgpuDeviceKind::IntegratedGpu(0)], "Vulkan"),
        Choice::Software => (&[WgpuDeviceKind::Cpu], "software Vulkan"),
    };
    let mut all = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(started) = all.iter().find(|started| started.choice == choice) {
        return Ok(started.clone());
    }
    let mut reason = String::new();
    for kind in kinds {
        let device = WgpuDevice::new(kind.clone());
        match try_init_setup::<Vulkan>(&device, RuntimeOptions::default()) {
            Ok(setup) => {
                let adapter = Adapter::of(&setup.adapter.get_info());
                let started = Started { choice, device, adapter, wgpu: setup.device };
                all.push(started.clone());
                return Ok(started);
            }
            Err(error) => reason = error.to_string(),
        }
    }
    Err(GpuError::None { wanted, reason })
}

fn client(device: &WgpuDevice) -> Client {
    use cubecl::__private::Runtime;
    WgpuRuntime::<cubecl::wgpu::AutoCompiler>::client(device)
}
