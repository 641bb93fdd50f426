//! Every kernel text the crate can ask for: naga's validation in the portable tier, the host's claims about it, and its
//! translation for Vulkan, Metal and DX12, checked by the tools that are there (spirv-tools, glslang-tools).
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, which clippy.toml does not reach

use latten::inspect::{variants, Variant};
use latten::Tier;
use naga::back::{hlsl, msl, spv};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Module, StorageAccess};
use std::any::Any;
use std::collections::HashMap;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

/// What every WebGPU device has beyond naga's empty set: unpack2x16float and pack2x16float.
const CORE: Capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;

/// What naga must be allowed for a tier.
fn allowed(tier: Tier) -> Capabilities {
    match tier {
        Tier::Portable => CORE,
        Tier::Matrix => {
            let matrices = Capabilities::COOPERATIVE_MATRIX | Capabilities::SHADER_FLOAT16;
            CORE | matrices | Capabilities::SUBGROUP | Capabilities::SUBGROUP_BARRIER
        }
        _ => CORE | Capabilities::SUBGROUP,
    }
}

/// Runs `check` on every variant, on all cores.
fn each(check: impl Fn(&Variant) + Sync) {
    let all = variants().unwrap();
    assert!(all.len() > 100, "{} variants", all.len());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while let Some(v) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    check(v)
                }
            });
        }
    });
}

/// What the checks of every day find: by check, what each variant fails for. Parsing and validating cost most, so that a
/// variant is parsed once for all checks, whichever test comes first; each test then tells of its own check.
fn faults(check: &str) -> Vec<String> {
    static FAULTS: OnceLock<HashMap<&str, Vec<String>>> = OnceLock::new();
    let all = FAULTS.get_or_init(|| {
        let found: Mutex<HashMap<&str, Vec<String>>> = Mutex::new(CHECKS.map(|name| (name, Vec::new())).into());
        let (spirv_val, glslang) = (Tool::find("spirv-val"), Tool::find("glslangValidator"));
        let (shown_spirv, shown_hlsl) = (Shown::new(false), Shown::new(false));
        each(|v| {
            let failed = |name: &'static str, why: Box<dyn Any + Send>| {
                let text = why.downcast_ref::<String>().cloned();
                let text = text.or_else(|| why.downcast_ref::<&str>().map(|s| s.to_string())).unwrap_or_default();
                found.lock().unwrap().entry(name).or_default().push(format!("{} {}: {text}", v.name, v.label));
            };
            let run = |name: &'static str, check: &dyn Fn()| {
                if let Err(why) = catch_unwind(AssertUnwindSafe(check)) {
                    failed(name, why);
                }
            };
            let parsed = catch_unwind(AssertUnwindSafe(|| {
                let module = parse(v);
                let info = validate(v, &module);
                (module, info)
            }));
            let (module, info) = match parsed {
                Ok(parsed) => parsed,
                // No other check has anything to look at.
                Err(why) => return failed("valid", why),
            };
            run("valid", &|| check_words(v));
            run("host", &|| check_host(v, &module));
            run("spirv", &|| check_spirv(v, (&module, &info), (&spirv_val, &shown_spirv)));
            run("hlsl", &|| check_hlsl(v, (&module, &info), (&glslang, &shown_hlsl)));
            run("msl", &|| check_msl(v, (&module, &info)));
        });
        found.into_inner().unwrap()
    });
    all[check].clone()
}

const CHECKS: [&str; 5] = ["valid", "host", "spirv", "hlsl", "msl"];

fn no_faults(check: &str) {
    let faults = faults(check);
    assert!(faults.is_empty(), "{} variants\n{}", faults.len(), faults.join("\n"));
}

fn parse(v: &Variant) -> Module {
    naga::front::wgsl::parse_str(&v.wgsl)
        .unwrap_or_else(|e| panic!("{} {}: {}\n{}", v.name, v.label, e.emit_to_string(&v.wgsl), v.annotated))
}

fn validate(v: &Variant, module: &Module) -> ModuleInfo {
    let mut validator = Validator::new(ValidationFlags::all(), allowed(v.tier));
    if v.tier > Tier::Portable {
        validator.subgroup_stages(naga::valid::ShaderStages::COMPUTE);
        validator.subgroup_operations(naga::valid::SubgroupOperationSet::all());
    }
    let checked = validator.validate(module);
    checked.unwrap_or_else(|e| panic!("{} {}: {}", v.name, v.label, e.emit_to_string(&v.wgsl)))
}

#[test]
fn every_variant_is_valid_with_its_tier_alone() {
    no_faults("valid");
}

fn check_words(v: &Variant) {
    if v.tier > Tier::Portable {
        return;
    }
    for word in ["enable ", "requires ", "subgroup", "f16,", "<f16>", ": f16", "f16(", "override"] {
        // Comments may name what the code may not use.
        let found = v.wgsl.lines().any(|l| l.split("//").next().unwrap_or("").contains(word));
        assert!(!found, "{} {}: {word:?} in the portable tier", v.name, v.label);
    }
}

#[test]
fn memory_bindings_and_workgroups_are_what_the_host_says() {
    no_faults("host");
}

fn check_host(v: &Variant, module: &Module) {
    let what = format!("{} {}", v.name, v.label);
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx()).unwrap();

    // Each variable rounded to 16 bytes, as WebGPU counts against its limit.
    let workgroup = module.global_variables.iter().filter(|(_, g)| g.space == AddressSpace::WorkGroup);
    let sizes: Vec<usize> = workgroup.map(|(_, g)| layouter[g.ty].size as usize).collect();
    assert_eq!(sizes.iter().sum::<usize>(), v.workgroup_bytes, "{what}: workgroup memory");
    // Matrices begin at multiples of 16 bytes, and a driver aligns arrays no more than their elements: so one u32 before an array
    // of matrices moves them, and on NVIDIA's driver the results were wrong.
    if v.tier == Tier::Matrix {
        assert!(sizes.iter().all(|bytes| bytes % 16 == 0), "{what}: workgroup variables of {sizes:?} bytes");
    }
    let rounded: usize = sizes.iter().map(|bytes| bytes.next_multiple_of(16)).sum();
    let (most, reckoned) = if v.tier == Tier::Matrix { (49152, 49152) } else { (16384, 16352) };
    assert!(rounded <= most && v.workgroup_bytes <= reckoned, "{what}: {sizes:?} bytes of workgroup memory");

    let [entry] = module.entry_points.as_slice() else { panic!("{what}: one entry point") };
    assert_eq!(entry.name, "main", "{what}");
    let [x, y, z] = entry.workgroup_size;
    assert!(x <= 256 && y == 1 && z == 1, "{what}: workgroup of {:?}", entry.workgroup_size);

    let mut storage = vec![None; v.writable.len()];
    for (_, global) in module.global_variables.iter() {
        let Some(at) = &global.binding else { continue };
        assert_eq!(at.group, 0, "{what}");
        match global.space {
            AddressSpace::Uniform => assert_eq!(at.binding, 0, "{what}"),
            AddressSpace::Storage { access } => {
                let slot = storage.get_mut(at.binding as usize - 1);
                *slot.unwrap_or_else(|| panic!("{what}: the host binds no {}", at.binding)) =
                    Some(access.contains(StorageAccess::STORE));
            }
            space => panic!("{what}: {:?} in {space:?}", global.name),
        }
    }
    let host: Vec<_> = v.writable.iter().map(|w| Some(*w)).collect();
    assert_eq!(storage, host, "{what}: write access per storage binding");
    // WebGPU's default. Pages in more than two slabs are for devices of more (`Capabilities::max_slabs`), and so are products that
    // append (`Linear::with_append` counts what there is).
    let appends = ["nn/rows_end/cached", "nn/beside/append"].iter().any(|part| v.label.contains(part));
    let most = if v.label.contains("kv/slabs/4") { 10 } else { 8 };
    let most = if appends { 12 } else { most };
    assert!(storage.len() <= most, "{what}: {} storage buffers", storage.len());
}

/// The ceilings of `kernel_table`: with everything that naga knows, since one of them needs cooperative matrices, which
/// no software adapter runs.
#[test]
fn the_ceilings_are_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/shaders");
    let tool = Tool::find("spirv-val");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let wgsl = std::fs::read_to_string(&path).unwrap();
        let mut front = naga::front::wgsl::Frontend::new();
        front.set_options(naga::front::wgsl::Options { parse_doc_comments: false, capabilities: Capabilities::all() });
        let module = front.parse(&wgsl).unwrap_or_else(|e| panic!("{}", e.emit_to_string(&wgsl)));
        let checked = Validator::new(ValidationFlags::all(), Capabilities::all()).validate(&module);
        let info = checked.unwrap_or_else(|e| panic!("{}: {}", path.display(), e.emit_to_string(&wgsl)));
        let options = spv::Options { lang_version: (1, 3), flags: spv::WriterFlags::empty(), ..Default::default() };
        let words = spv::write_vec(&module, &info, &options, Some(&pipeline_spv())).unwrap();
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        // spirv-val of Debian 12 does not know cooperative matrices; naga's word has to do.
        if !wgsl.contains("cooperative") {
            tool.check_named(&name, "spv", &bytes, &["--target-env", "vulkan1.3"]);
        }
        names.push(name);
    }
    names.sort();
    assert_eq!(names, ["fma", "matmul_coop", "stream"]);
}

/// wgpu's bounds checks for adapters without robustness: everything is clamped.
const RESTRICT: BoundsCheckPolicies = BoundsCheckPolicies {
    index: BoundsCheckPolicy::Restrict,
    buffer: BoundsCheckPolicy::Restrict,
    image_load: BoundsCheckPolicy::Restrict,
    binding_array: BoundsCheckPolicy::Unchecked,
};

#[test]
fn spirv() {
    no_faults("spirv");
}

#[test]
#[ignore = "long: one process per variant, minutes"]
fn spirv_of_all() {
    let (tool, shown) = (Tool::find("spirv-val"), Shown::new(true));
    each(|v| {
        let module = parse(v);
        check_spirv(v, (&module, &validate(v, &module)), (&tool, &shown));
    });
}

fn check_spirv(v: &Variant, (module, info): (&Module, &ModuleInfo), (tool, shown): (&Tool, &Shown)) {
    let options = spv::Options {
        lang_version: (1, 3),
        flags: spv::WriterFlags::empty(),
        bounds_check_policies: RESTRICT,
        // What core WebGPU on Vulkan 1.1 may use, and what the tier adds: any other capability is an error.
        capabilities: Some(spirv_capabilities(v.tier)),
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        use_storage_input_output_16: false,
        ..Default::default()
    };
    let words = spv::write_vec(module, info, &options, Some(&pipeline_spv()))
        .unwrap_or_else(|e| panic!("{} {}: {e}", v.name, v.label));
    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    if v.tier == Tier::Matrix || !shown.wants(v) {
        return; // Debian's spirv-val does not know SPV_KHR_cooperative_matrix
    }
    tool.check(v, "spv", &bytes, &["--target-env", "vulkan1.1"]);
}

fn spirv_capabilities(tier: Tier) -> naga::FastHashSet<spv::Capability> {
    let mut all = vec![spv::Capability::Shader];
    if tier > Tier::Portable {
        all.extend([
            spv::Capability::GroupNonUniform,
            spv::Capability::GroupNonUniformArithmetic,
            spv::Capability::GroupNonUniformShuffle,
            // All of them are what wgpu asks a device with SUBGROUP for.
            spv::Capability::GroupNonUniformVote,
            spv::Capability::GroupNonUniformShuffleRelative,
        ]);
    }
    if tier == Tier::Matrix {
        all.extend([
            spv::Capability::GroupNonUniformVote,
            spv::Capability::CooperativeMatrixKHR,
            spv::Capability::VulkanMemoryModel,
            spv::Capability::Float16,
            spv::Capability::StorageBuffer16BitAccess,
            spv::Capability::UniformAndStorageBuffer16BitAccess,
        ]);
    }
    all.into_iter().collect()
}

fn pipeline_spv() -> spv::PipelineOptions {
    spv::PipelineOptions { shader_stage: naga::ShaderStage::Compute, entry_point: "main".into() }
}

#[test]
fn hlsl() {
    no_faults("hlsl");
}

#[test]
#[ignore = "long: one process per variant, minutes"]
fn hlsl_of_all() {
    let (tool, shown) = (Tool::find("glslangValidator"), Shown::new(true));
    each(|v| {
        let module = parse(v);
        check_hlsl(v, (&module, &validate(v, &module)), (&tool, &shown));
    });
}

/// Direct3D has no cooperative matrices, and Metal none of 16 x 16.
fn check_hlsl(v: &Variant, (module, info): (&Module, &ModuleInfo), (tool, shown): (&Tool, &Shown)) {
    if v.tier == Tier::Matrix {
        return;
    }
    let bindings = module.global_variables.iter().filter_map(|(_, g)| g.binding);
    let options = hlsl::Options {
        binding_map: bindings.map(|b| (b, hlsl::BindTarget { register: b.binding, ..Default::default() })).collect(),
        fake_missing_bindings: false,
        special_constants_binding: Some(hlsl::BindTarget { space: 1, ..Default::default() }),
        zero_initialize_workgroup_memory: false,
        restrict_indexing: true,
        ..Default::default()
    };
    let mut text = String::new();
    let entries = hlsl::Writer::new(&mut text, &options, &hlsl::PipelineOptions::default())
        .write(module, info, None)
        .unwrap_or_else(|e| panic!("{} {}: {e}", v.name, v.label));
    let entry = entries.entry_point_names[0].as_ref().unwrap();
    // glslang does not read the cast of 0 to an array, by which naga clears one; fxc and dxc do.
    let read = |line: &str| {
        let returned = line.trim().strip_prefix("return (").and_then(|l| l.strip_suffix("])0;"));
        match (line.split_once(" = "), returned.and_then(|array| array.split_once('['))) {
            (Some((declared, zero)), _) if zero.ends_with("])0;") => format!("{declared};\n"),
            (_, Some((element, count))) => format!("{element} zero[{count}]; return zero;\n"),
            _ => format!("{line}\n"),
        }
    };
    if !shown.wants(v) {
        return;
    }
    let text: String = text.lines().map(read).collect();
    tool.check(v, "hlsl", text.as_bytes(), &["-D", "-V", "-S", "comp", "-e", entry, "-o", "/dev/null"]);
}

#[test]
fn msl() {
    no_faults("msl");
}

fn check_msl(v: &Variant, (module, info): (&Module, &ModuleInfo)) {
    if v.tier == Tier::Matrix {
        return;
    }
    let resources = module.global_variables.iter().filter_map(|(_, g)| g.binding).map(|b| {
        let target = msl::BindTarget { buffer: Some(b.binding as u8), mutable: true, ..Default::default() };
        (b, target)
    });
    let resources =
        msl::EntryPointResources { resources: resources.collect(), sizes_buffer: Some(30), ..Default::default() };
    let options = msl::Options {
        lang_version: (2, 1),
        per_entry_point_map: [("main".to_string(), resources)].into_iter().collect(),
        fake_missing_bindings: false,
        bounds_check_policies: RESTRICT,
        zero_initialize_workgroup_memory: false,
        ..Default::default()
    };
    let pipeline =
        msl::PipelineOptions { entry_point: Some((naga::ShaderStage::Compute, "main".into())), ..Default::default() };
    let (text, translation) =
        msl::write_string(module, info, &options, &pipeline).unwrap_or_else(|e| panic!("{} {}: {e}", v.name, v.label));
    let entry = translation.entry_point_names[0].as_ref().unwrap();
    assert!(text.contains("kernel void ") && text.contains(entry), "{} {}", v.name, v.label);
}

/// Whether an external tool, a process each, is to see a variant too: the first two of each set of parts in the tests of
/// every day. naga translates all of them there; what constants alone tell apart, the tools see with `./dev test --full`.
struct Shown {
    all: bool,
    seen: Mutex<HashMap<String, usize>>,
}

impl Shown {
    fn new(all: bool) -> Self {
        Shown { all, seen: Mutex::default() }
    }

    fn wants(&self, v: &Variant) -> bool {
        let parts = v.label.split_once(" of ").map_or("", |(_, parts)| parts);
        let mut seen = self.seen.lock().unwrap();
        let count = seen.entry(format!("{} {parts}", v.name)).or_default();
        *count += 1;
        self.all || *count <= 2
    }
}

/// A validator that may not be installed.
struct Tool {
    name: &'static str,
    found: bool,
    folder: PathBuf,
}

impl Tool {
    fn find(name: &'static str) -> Self {
        let found = Command::new(name).arg("--version").output().is_ok();
        if !found {
            println!("skipped: {name} is not on PATH (Debian: spirv-tools, glslang-tools); translated only");
        }
        // A folder of its own: tests run side by side, and the first to end removes its folder while it is empty.
        static FOLDERS: AtomicUsize = AtomicUsize::new(0);
        let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
        let folder = format!("shaders-{name}-{}-{number}", std::process::id());
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        Tool { name, found, folder }
    }

    fn check(&self, v: &Variant, extension: &str, bytes: &[u8], arguments: &[&str]) {
        self.check_named(&format!("{} {}", v.name, v.label), extension, bytes, arguments);
    }

    fn check_named(&self, what: &str, extension: &str, bytes: &[u8], arguments: &[&str]) {
        assert!(!bytes.is_empty());
        if !self.found {
            return;
        }
        static FILES: AtomicUsize = AtomicUsize::new(0);
        let number = FILES.fetch_add(1, Ordering::Relaxed);
        let file = self.folder.join(format!("{number}.{extension}"));
        std::fs::write(&file, bytes).unwrap();
        let output = Command::new(self.name).args(arguments).arg(&file).output().unwrap();
        let words = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{what}: {} says\n{words}", self.name);
        std::fs::remove_file(&file).unwrap();
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.folder); // what failed stays to be looked at
    }
}

/// Shader text lives in `shaders/`, where editors and people find it, never inside Rust.
#[test]
fn no_wgsl_inside_rust() {
    let (at, bind) = (format!("@{}", "compute"), format!("@{}(", "binding"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders: Vec<PathBuf> = ["src", "tests", "tools", "examples", "benches"].map(|f| root.join(f)).into();
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                assert!(!text.contains(&at) && !text.contains(&bind), "{}: WGSL in Rust", path.display());
                files += 1;
            }
        }
    }
    assert!(files > 20, "{files} files read");
}
