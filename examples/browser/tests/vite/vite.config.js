// The development server would make one file of the package and lose its worker and its .wasm.
export default { optimizeDeps: { exclude: ["latten"] }, build: { target: "es2022" } };
