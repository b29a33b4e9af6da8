#include <ATen/Version.h>
#include <c10/core/InferenceMode.h>
#include <caffe2/serialize/read_adapter_interface.h>
#include <dlfcn.h>
#include <sys/mman.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/script.h>
#include <torch/version.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <mutex>
#include <optional>
#include <set>
#include <shared_mutex>
#include <vector>

#include "cpuc.h"
#include "heap.h"
#include "text.h"
#include "weight_memory.h"

namespace cpuc {
namespace {

// In rising order, as at::get_cpu_capability names them.
const std::array<std::string, 4> capabilities = {"NO AVX", "DEFAULT", "AVX2", "AVX512"};

std::string release(const std::string& version) { return version.substr(0, version.find('+')); }

// The graph names operators and packed weight classes that both may change between releases.
void check_versions(const Bundle& bundle) {
  const std::array<std::array<std::string, 3>, 2> all = {{{"torch", bundle.manifest.torch, TORCH_VERSION},
                                                          {"intel-extension-for-pytorch", bundle.manifest.ipex, CPUC_IPEX_VERSION}}};
  for (const auto& [package, wanted, here] : all) {
    if (release(wanted) != release(here))
      throw Error(Kind::bundle, bundle.file->path() + ": compiled with " + package + " " + release(wanted) + ", but this program has " +
                                    release(here) + ": compile the model again, or build the program with that release");
  }
}

// torch asks a library that reads /proc: where that is not mounted it would do without any AVX. Afterwards it remembers, and IPEX's
// library, which asks the CPU itself, must not find the variable.
void detect_cpu() {
  if (::access("/proc/cpuinfo", R_OK) == 0 || std::getenv("ATEN_CPU_CAPABILITY") != nullptr) return;
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
  if (!avx2) return;
  ::setenv("ATEN_CPU_CAPABILITY", avx512 ? "avx512" : "avx2", 1);
  at::get_cpu_capability();
  ::unsetenv("ATEN_CPU_CAPABILITY");
}

void check_cpu(const Bundle& bundle) {
  const auto rank = [](const std::string& name) { return std::find(capabilities.begin(), capabilities.end(), name) - capabilities.begin(); };
  const std::string& needed = bundle.manifest.isa;
  const auto last = static_cast<std::ptrdiff_t>(capabilities.size());
  if (rank(needed) == last)
    throw Error(Kind::bundle, bundle.file->path() + ": needs CPU capability " + in_quotes(needed) + ", which this cpuc does not know: update cpuc");
  const std::ptrdiff_t here = rank(at::get_cpu_capability());
  if (here == last || here < rank(needed))
    throw Error(Kind::bundle, bundle.file->path() + ": needs a CPU with " + needed +
                                  ", which this one lacks: compile with another --precision, or run on another machine");
}

// Registers IPEX's operators with torch, once per process. Its library prints a notice that no user can act on.
void load_ipex() {
  static std::once_flag once;
  std::call_once(once, [] {
    // Not /dev/null, which is not there in an empty root.
    const int saved = ::dup(STDERR_FILENO), sink = ::memfd_create("notice", MFD_CLOEXEC);
    if (saved >= 0 && sink >= 0) ::dup2(sink, STDERR_FILENO);
    const void* library = ::dlopen("libintel-ext-pt-cpu.so", RTLD_NOW | RTLD_GLOBAL);
    if (saved >= 0 && sink >= 0) ::dup2(saved, STDERR_FILENO);
    if (saved >= 0) ::close(saved);
    if (sink >= 0) ::close(sink);
    if (library == nullptr) throw Error(Kind::bundle, std::string("IPEX's library cannot be loaded: ") + ::dlerror());
  });
}

// Gives torch the file that was checked, whatever lies under its name by now.
class Reader final : public caffe2::serialize::ReadAdapterInterface {
 public:
  Reader(const File& file, const WeightMemory& memory) : file_(file), memory_(memory) {}
  size_t size() const override { return file_.size(); }
  size_t read(uint64_t position, void* buffer, size_t size, const char* what) const override {
    static_cast<void>(what);  // what is read, for messages that this class does not give
    auto* bytes = static_cast<char*>(buffer);
    return memory_.fill(bytes, position, size) ? size : file_.read_into(bytes, position, size);
  }

 private:
  const File& file_;
  const WeightMemory& memory_;
};

// libxsmm's kernels are made when a shape is met for the first time, and IPEX keeps them, for the whole process, in tables that have no
// lock. Whoever finds all that it needs there may go with others.
std::shared_mutex kernels;

std::string without_backtrace(const std::exception& error) {
  const auto* of_torch = dynamic_cast<const c10::Error*>(&error);
  return of_torch == nullptr ? error.what() : of_torch->what_without_backtrace();
}

// Throws in the place of an error of torch that says what is wrong with this machine.
void explain(const std::string& message, const std::string& path) {
  if (message.find("could not create a primitive") != std::string::npos) {
    throw Error(Kind::bundle, path + ": oneDNN has no kernels here for the graph's layers: unset ONEDNN_MAX_CPU_ISA if it is set, "
                                     "or compile with another --precision");
  }
  for (const char* said : {"not implemented for this packed parameter", "Didn't find engine for operation quantized::linear_prepack"}) {
    if (message.find(said) != std::string::npos) {
      throw Error(Kind::bundle, path + ": FBGEMM, which computes the graph's layers, does not know this CPU: /proc has to be mounted");
    }
  }
  if (message.find("can't allocate memory") != std::string::npos) throw std::bad_alloc();
}

// For whose kernels torch packs layers in int8 is a setting of the process, which users may change. It does not matter once they
// are packed, nor to graphs that have no layers of FBGEMM's. Without /proc there is nothing to choose, and asking prints an error.
class PackingForFbgemm {
 public:
  PackingForFbgemm() : alone_(guard_) {
    if (::access("/proc/cpuinfo", R_OK) != 0) return;
    chosen_ = at::globalContext().qEngine();
    for (const at::QEngine each : at::globalContext().supportedQEngines()) {
      if (each == at::QEngine::FBGEMM) at::globalContext().setQEngine(each);
    }
  }
  ~PackingForFbgemm() {
    if (chosen_) at::globalContext().setQEngine(*chosen_);
  }
  PackingForFbgemm(const PackingForFbgemm&) = delete;
  PackingForFbgemm& operator=(const PackingForFbgemm&) = delete;

 private:
  static inline std::mutex guard_;
  const std::lock_guard<std::mutex> alone_;
  std::optional<at::QEngine> chosen_;
};

}  // namespace

struct Model::Loaded {
  std::string path;
  Manifest manifest;
  // forward() of a module is not const; calls do not change it, and may come from several threads.
  mutable torch::jit::Module module;

  Loaded(std::string from, Manifest read, torch::jit::Module made)
      : path(std::move(from)), manifest(std::move(read)), module(std::move(made)) {}
  mutable std::mutex guard;
  mutable std::set<std::vector<std::vector<int64_t>>> met;  // the shapes of the inputs of finished calls

  bool knows(const std::vector<std::vector<int64_t>>& shapes) const {
    const std::lock_guard lock(guard);
    return met.count(shapes) != 0;
  }
};

Model::Model(std::unique_ptr<Loaded> loaded) : loaded_(std::move(loaded)) {}
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;
Model::~Model() = default;

Model Model::load(const std::string& path, const LoadOptions& options) {
  const Bundle bundle = Bundle::open(path, options.trust);
  return load(bundle, bundle.start_checking(options));
}

Model Model::load(const Bundle& bundle, Checks checks) {
  check_versions(bundle);
  detect_cpu();
  check_cpu(bundle);
  load_ipex();
  keep_freed_memory();
  checks.graph.get();
  if (checks.before_loading) checks.finish();
  try {
    const WeightMemory memory(*bundle.file);
    auto module = [&] {
      const PackingForFbgemm packing;
      return torch::jit::load(std::make_shared<Reader>(*bundle.file, memory), at::kCPU);
    }();
    auto loaded = std::make_unique<Loaded>(bundle.file->path(), bundle.manifest, std::move(module));
    memory.detach();
    checks.finish();
    return Model(std::move(loaded));
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    checks.finish();  // damage explains more than what torch made of it
    const std::string message = without_backtrace(error);
    explain(message, bundle.file->path());
    const size_t begin = std::min(message.find_first_not_of(" \n"), message.size());
    throw Error(Kind::bundle, bundle.file->path() + ": torch cannot load the graph: " + message.substr(begin, message.find('\n', begin) - begin));
  }
}

const Manifest& Model::manifest() const { return loaded_->manifest; }

Tensors Model::run(const Tensors& inputs) const {
  check_inputs(loaded_->manifest, inputs);
  std::vector<c10::IValue> arguments;
  std::vector<std::vector<int64_t>> shapes;
  for (const TensorSpec& spec : loaded_->manifest.inputs) {
    const at::Tensor& tensor = inputs.at(spec.name);
    arguments.emplace_back(tensor);
    shapes.push_back(tensor.sizes().vec());
  }
  std::shared_lock together(kernels, std::defer_lock);
  std::unique_lock alone(kernels, std::defer_lock);
  if (loaded_->knows(shapes)) {
    together.lock();
  } else {
    alone.lock();
  }
  // The graph is fused already: the executor would only profile and optimise it again. The flag belongs to the thread.
  const torch::jit::GraphOptimizerEnabledGuard unoptimized(false);
  const c10::InferenceMode inference;
  c10::IValue result;
  try {
    result = loaded_->module.forward(std::move(arguments));
  } catch (const std::exception& error) {
    explain(without_backtrace(error), loaded_->path);
    throw;
  }
  if (alone) {
    const std::lock_guard lock(loaded_->guard);
    constexpr size_t most = 4096;  // recordings have new shapes without end
    if (loaded_->met.size() >= most) loaded_->met.clear();
    loaded_->met.insert(std::move(shapes));
  }
  const auto& values = result.toTupleRef().elements();
  Tensors outputs;
  for (size_t i = 0; i < loaded_->manifest.outputs.size(); ++i) outputs[loaded_->manifest.outputs[i].name] = values.at(i).toTensor();
  return outputs;
}

}  // namespace cpuc
