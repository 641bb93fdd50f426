//! What reading a model's header takes of the host's memory: some times its size, whatever stands in it.
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, which clippy.toml does not reach

use latten::model::{Config, Decoder, WeightBytes};
use latten::{wgpu, DType, Gpu};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::Mutex;

/// Counts the bytes that are held, and the most that were since it was asked last.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it came.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let memory = System.alloc(layout);
        if !memory.is_null() {
            MOST.fetch_max(HELD.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        }
        memory
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        System.dealloc(memory, layout);
        HELD.fetch_sub(layout.size(), Relaxed);
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// One test measures at a time.
static MEASURING: Mutex<()> = Mutex::new(());

/// Most bytes that were held beyond those before, while `run` ran.
fn most(run: impl FnOnce()) -> usize {
    let before = HELD.load(Relaxed);
    MOST.store(before, Relaxed);
    run();
    MOST.load(Relaxed) - before
}

/// A device without one: nothing is run on it.
fn gpu() -> Gpu {
    let desc = wgpu::InstanceDescriptor {
        backends: wgpu::Backends::NOOP,
        backend_options: wgpu::BackendOptions {
            noop: wgpu::NoopBackendOptions { enable: true, ..Default::default() },
            ..Default::default()
        },
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    };
    let adapters = pollster::block_on(wgpu::Instance::new(desc).enumerate_adapters(wgpu::Backends::NOOP));
    let adapter = adapters.into_iter().next().unwrap();
    let request = wgpu::DeviceDescriptor { required_limits: adapter.limits(), ..Default::default() };
    let (device, queue) = pollster::block_on(adapter.request_device(&request)).unwrap();
    Gpu::from_wgpu(&adapter, device, queue).unwrap()
}

const CONFIG: &str = r#"{"model_type": "llama", "vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 64}"#;

/// Bytes of a header, about.
const SIZE: usize = 4 << 20;

fn info(offset: usize) -> String {
    format!("{{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[{offset},{}]}}", offset + 1)
}

/// Headers of some MiB, each with as much of one thing as there is room for, and what is said of each.
fn headers() -> Vec<(&'static str, String, &'static str)> {
    let many = |one: &dyn Fn(usize) -> String| {
        let (mut all, mut i) = (String::new(), 0);
        while all.len() < SIZE {
            all += &one(i);
            i += 1;
        }
        all
    };
    let missing = "tensor model.embed_tokens.weight: missing";
    let named = |name: &str| format!("{{\"{name}\":{}}}", info(0));
    vec![
        (
            "tensors",
            format!("{{{}\"last\":{}}}", many(&|i| format!("\"{i}\":{},", info(i))), info(SIZE)),
            "begins at byte",
        ),
        (
            "one shape",
            format!("{{\"t\":{{\"dtype\":\"U8\",\"shape\":[{}1],\"data_offsets\":[0,1]}}}}", many(&|_| "1,".into())),
            "64 dimensions",
        ),
        (
            "shapes",
            format!(
                "{{{}\"z\":{}}}",
                many(&|i| format!(
                    "\"{i}\":{{\"dtype\":\"U8\",\"shape\":[{}1],\"data_offsets\":[{i},{}]}},",
                    "1,".repeat(63),
                    i + 1
                )),
                info(0)
            ),
            "begins at byte",
        ),
        ("a name", named(&"n".repeat(SIZE)), missing),
        ("escapes", named(&"\\u0041".repeat(SIZE / 6)), missing),
        (
            "metadata",
            format!("{{\"__metadata__\":{{{}\"\":\"\"}},\"t\":{}}}", many(&|i| format!("\"{i}\":\"{i}\",")), info(0)),
            missing,
        ),
        (
            "nested",
            format!("{{\"__metadata__\":{}{},\"t\":{}}}", "[".repeat(SIZE / 2), "]".repeat(SIZE / 2), info(0)),
            missing,
        ),
        ("open", format!("{{\"__metadata__\":{}", "{\"a\":".repeat(SIZE / 5)), "EOF"),
        ("other keys", format!("{{\"t\":{{{}{}}}", many(&|i| format!("\"k{i}\":[{i}],")), &info(0)[1..]), missing),
        ("spaces", format!("{}{}", named("t"), " ".repeat(SIZE)), missing),
        ("text", format!("\"{}\"", "x".repeat(SIZE)), "invalid type"),
        ("numbers", format!("[{}1]", many(&|i| format!("{i},"))), "invalid type"),
    ]
}

#[test]
fn a_header_takes_some_times_its_size() {
    let _one = MEASURING.lock().unwrap();
    let (gpu, config) = (gpu(), Config::parse("c", CONFIG).unwrap());
    let folder = std::env::temp_dir().join(format!("latten-memory-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("config.json"), CONFIG).unwrap();
    for (what, header, why) in headers() {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.push(0);
        let load = |from_file: bool| {
            let mut text = String::new();
            let most = most(|| {
                let result = match from_file {
                    true => Decoder::load(&gpu, &folder, DType::F16),
                    false => {
                        Decoder::from_bytes(&gpu, config.clone(), WeightBytes { name: "w", bytes: &bytes }, DType::F16)
                    }
                };
                text = result.err().map(|e| e.to_string()).unwrap_or_default();
            });
            assert!(text.contains(why), "{what}: {}", text.chars().take(300).collect::<String>());
            most
        };
        std::fs::write(folder.join("model.safetensors"), &bytes).unwrap();
        let times = [false, true].map(|from_file| load(from_file) as f64 / header.len() as f64);
        println!("{what}: {:.2} times the header's bytes, {:.2} from a file", times[0], times[1]);
        // Nothing of the header itself is held, but names and places; of a file it is read first.
        assert!(times[0] < 5.0 && times[1] < times[0] + 1.1, "{what}: {times:?}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

/// An index is read entry by entry, too.
#[test]
fn an_index_takes_some_times_its_size() {
    let _one = MEASURING.lock().unwrap();
    let gpu = gpu();
    let folder = std::env::temp_dir().join(format!("latten-index-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("config.json"), CONFIG).unwrap();
    let file = format!("{{\"t\":{}}}", info(0));
    let file = [&(file.len() as u64).to_le_bytes()[..], file.as_bytes(), &[0]].concat();
    std::fs::write(folder.join("f"), file).unwrap();
    let metadata: String = (0..SIZE / 16).map(|i| format!("\"{i}\":[[{i}]],")).collect();
    for index in [
        format!("{{\"weight_map\":{{{}\"t\":\"f\"}}}}", "\"t\":\"f\",".repeat(SIZE / 8)),
        format!("{{\"metadata\":{{{metadata}\"\":0}},\"weight_map\":{{\"t\":\"f\"}}}}"),
    ] {
        std::fs::write(folder.join("model.safetensors.index.json"), &index).unwrap();
        let most = most(|| {
            let text = Decoder::load(&gpu, &folder, DType::F16).err().unwrap().to_string();
            assert!(text.contains("tensor model.embed_tokens.weight: missing"), "{text}");
        });
        let times = most as f64 / index.len() as f64;
        println!("{times:.2} times the index's bytes");
        assert!(times < 2.5, "{times}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
