//! CUDA sources of the kernels that are launched, whatever device they are launched on: what CUDA's compiler says
//! of them can be known where there is no such device.

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use cubecl::{
    Compiler, CubeKernel, define_kernel,
    ir::{
        DeviceIdentity, DeviceProperties, HardwareProperties, MemoryDeviceProperties, TargetProperties,
        VectorSize,
    },
    prelude::KernelId,
    profile::TimingMethod,
};
use cubecl_cpp::{
    shared::{CompilationOptions, CppCompiler, CppSupportedFeatures, register_supported_types},
    target::Cuda,
};

use crate::Gpu;

/// Writes the CUDA source of every kernel that is launched, once in a process.
pub(crate) struct Watch {
    folder: PathBuf,
}

/// Kernels whose source has been written.
static SEEN: Mutex<Option<HashSet<KernelId>>> = Mutex::new(None);

/// Units that run together on a device that CUDA knows.
const WARP: usize = 32;

impl Watch {
    /// What kernels are specialised for: the least that devices since Ampere have.
    pub(crate) fn properties(&self) -> (Arc<DeviceProperties>, Arc<TargetProperties>) {
        let hardware = HardwareProperties {
            load_width: 128,
            vector_register_count: None,
            plane_size_min: WARP as u32,
            plane_size_max: WARP as u32,
            max_bindings: 1024,
            max_shared_memory_size: 48 * 1024,
            max_cube_count: (i32::MAX as u32, 65535, 65535),
            max_units_per_cube: 1024,
            max_cube_dim: (1024, 1024, 64),
            num_streaming_multiprocessors: None,
            num_cpu_cores: None,
            last_level_cache_size: None,
            num_tensor_cores: None,
            min_tensor_cores_dim: None,
            max_vector_size: VectorSize::MAX,
            cube_mma_reserved_shared_memory: 0,
        };
        let identity = DeviceIdentity { name: "none".into(), fingerprint: "none".into(), physical: None };
        let memory = MemoryDeviceProperties::new(1 << 30, 256);
        let mut properties =
            DeviceProperties::new(Default::default(), memory, hardware, TimingMethod::Device, identity);
        register_supported_types(&mut properties);
        (Arc::new(properties), Arc::default())
    }

    /// Notes a kernel.
    ///
    /// # Panics
    /// It has no CUDA source, or the source cannot be written: a test asked for it.
    pub(crate) fn launched<K: CubeKernel>(&self, name: &str, kernel: &K) {
        let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = seen.get_or_insert_default();
        if !seen.insert(kernel.id()) {
            return;
        }
        let options = CompilationOptions {
            warp_size: WARP,
            supports_features: CppSupportedFeatures { dp4a: true, ..Default::default() },
            amd_wmma: None,
        };
        let kernel = define_kernel(kernel).expect("a kernel that is launched is defined");
        let compiled = CppCompiler::<Cuda>::default().compile(kernel, &options).expect("a CUDA source");
        let path = self.folder.join(format!("{name}-{}.cu", seen.len()));
        std::fs::write(path, compiled.source).expect("the folder takes files");
    }
}

impl Gpu {
    /// The same backend, which writes the CUDA source of every kernel it launches to a folder.
    #[must_use]
    pub fn emitting(mut self, folder: impl Into<PathBuf>) -> Gpu {
        self.watch = Some(Arc::new(Watch { folder: folder.into() }));
        self
    }
}
