//! One `Gpu` used from several threads: each reads its own results, whoever submits the commands.

use crate::common::*;
use latten::nn::SwiGlu;

#[test]
fn a_result_is_read_after_its_commands_whichever_thread_submits_them() {
    let gpu = gpu();
    let work = |thread: usize| {
        let swiglu = SwiGlu::new(gpu).unwrap();
        for i in 0..150 {
            let gate = (1 + thread * 1000 + i) as f32;
            let x = tensor(gpu, &[1, 4], &[50.0, 50.0, gate, 2.0]);
            let y = tensor(gpu, &[1, 2], &[f32::NAN; 2]);
            swiglu.run(&x, &y).unwrap();
            assert_eq!(download(gpu, &y), [50.0 * gate, 100.0], "thread {thread}, round {i}");
        }
    };
    std::thread::scope(|scope| (0..4).for_each(|thread| drop(scope.spawn(move || work(thread)))));
}
