//! latten for Python: the classes of the module `latten._latten`, which the package `latten` (`python/latten`) offers with types.
//!
//! Arrays are numpy's, or of any library by DLPack on the host. Each call that computes gives the interpreter to other threads, and
//! those that take long can be ended by Ctrl-C.

mod arrays;
mod attention;
mod cache;
mod device;
mod errors;
mod generate;
mod heads;
mod model;
mod reference;
mod work;

use pyo3::prelude::*;

#[pymodule]
fn _latten(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<device::PyGpu>()?;
    module.add_class::<heads::PyHeadLayout>()?;
    module.add_class::<heads::PyRope>()?;
    module.add_class::<cache::PyCache>()?;
    module.add_class::<cache::PySequence>()?;
    module.add_class::<attention::PyDecode>()?;
    module.add_class::<attention::PyPlan>()?;
    module.add_class::<model::PyModel>()?;
    module.add_class::<generate::Generation>()?;
    module.add_class::<generate::Token>()?;
    module.add_function(wrap_pyfunction!(work::finish, module)?)?;
    reference::add(module)
}
