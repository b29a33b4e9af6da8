// Named tensors in and out as JSON: `cpuc run --raw`.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>

#include "manifest.h"

namespace cpuc {

using Tensors = std::map<std::string, at::Tensor>;

// The tensors of a JSON object of nested lists, in the signature's dtypes. Throws Error for ragged lists and values that a dtype cannot
// hold; `source` names the input in errors.
Tensors parse_tensors(const std::string& data, const std::string& source, const Manifest& manifest);

// One JSON object of nested lists, in the order of the outputs; NaN and infinities become null.
std::string format_tensors(const Tensors& outputs, const Manifest& manifest);

// Compare `inputs` with the signature: names, dtypes, ranks, sizes of axes and range of values. Throws Error.
void check_inputs(const Manifest& manifest, const Tensors& inputs);

at::ScalarType dtype_of(const std::string& name);

}  // namespace cpuc
