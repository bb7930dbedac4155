// Reference loops of Muon: its two ops, and a whole step on one matrix.
#include <cmath>

#include "test/reference.h"

namespace llm::reference {
namespace {

using Arrays = std::vector<Array>;

Arrays muon_momentum(const Attributes& a, const Arrays& in, const StepState&) {
  const double clip = a.number("grad_clip"), norm = in[0][0], beta = a.number("momentum");
  const double scale = clip > 0 ? std::min(1.0, clip / (norm + 1e-6)) : 1.0;
  Arrays momenta, parts;
  for (size_t p = 1; p < in.size(); p += 2) {
    Array momentum = in[p + 1], update = in[p];
    for (int64_t i = 0; i < momentum.shape.elements(); ++i) {
      const double g = in[p][i] * scale;
      momentum[i] = beta * momentum[i] + (1 - beta) * g;
      update[i] = beta * momentum[i] + (1 - beta) * g;
    }
    const int64_t columns = update.shape[1];
    for (int64_t row = 0; row < update.shape[0];) {
      const int64_t rows = a.list("rows")[parts.size()];
      Array part = zeros({rows, columns});
      double squares = 0;
      for (int64_t i = 0; i < rows * columns; ++i) squares += std::pow(part[i] = update[row * columns + i], 2);
      for (double& v : part.values) v /= a.number("margin") * std::sqrt(squares);
      parts.push_back(part);
      row += rows;
    }
    momenta.push_back(momentum);
  }
  momenta.insert(momenta.end(), parts.begin(), parts.end());
  return momenta;
}

// This loop takes the master for the parameter, which it does not round.
Arrays muon_apply(const Attributes& a, const Arrays& in, const StepState& step) {
  const double learning_rate = step.learning_rate * a.number("learning_rate_scale");
  Arrays outputs;
  for (size_t i = 1; i < in.size();) {
    const bool has_master = in[i + 1].present();
    Array parameter = in[has_master ? i + 1 : i];
    i += 2;
    for (int64_t done = 0; done < parameter.shape.elements(); ++i) {
      const auto longer = static_cast<double>(std::max(in[i].shape[0], in[i].shape[1]));
      for (int64_t e = 0; e < in[i].shape.elements(); ++e) {
        double& p = parameter[done + e];
        p = p * (1 - learning_rate * a.number("weight_decay")) -
            learning_rate * a.number("rms") * std::sqrt(longer) * in[i][e];
      }
      done += in[i].shape.elements();
    }
    outputs.insert(outputs.end(), {parameter, has_master ? parameter : Array{}});
  }
  return outputs;
}

Arrays combine(const Attributes& a, const Arrays& in, const StepState&) {
  Arrays outputs;
  for (size_t i = 0; i < in.size(); i += 2) {
    outputs.push_back(in[i]);
    for (int64_t e = 0; e < in[i].shape.elements(); ++e)
      outputs.back()[e] = a.number("a") * in[i][e] + a.number("b") * in[i + 1][e];
  }
  return outputs;
}

}  // namespace

void add_muon_references(References& table) {
  table["muon_momentum"] = muon_momentum;
  table["muon_apply"] = muon_apply;
  table["combine"] = combine;
}

}  // namespace llm::reference
