#include "answer.h"

#include "cpuc.h"

namespace cpuc {

std::string answer(Request request) {
  if (request.records) {
    const TextModel model = TextModel::load(request.bundle, std::move(request.checks));
    return format_answers(model.answers(*request.records, request.options, request.progress), request.records->form);
  }
  if (request.data.empty()) {
    Model::load(request.bundle, std::move(request.checks));
    return "";
  }
  const Tensors inputs = parse_tensors(request.data, request.source, request.bundle.manifest);
  return format_tensors(Model::load(request.bundle, std::move(request.checks)).run(inputs), request.bundle.manifest);
}

}  // namespace cpuc

extern "C" __attribute__((visibility("default"))) void cpuc_answer(cpuc::Request& request, std::string& answer) {
  answer = cpuc::answer(std::move(request));
}
