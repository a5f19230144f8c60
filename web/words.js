// The texts of the hint, the live view and RAS Compare, in the pack's languages. They use the terms of locales/.

import { app } from "../../scripts/app.js";

const WORDS = {
  en: {
    step: "Step {step} of {total} · {kind} · {share} % of tokens",
    caption: "Step {step}/{total} · {kind} · {share} %",
    regional: "regional", dense: "dense", reset: "error reset",
    legend: "bright: computed · dark: reused",
    label: "{text}. Bright regions are computed, dark ones reused.",
    slider: "Step of the last run",
    tokens: "{share} % of all tokens",
    speed: "{speed}× speed",
    busy: "computer busy: speed unclear",
    nothing: "Not accelerated: {reason}",
    less: "Less than planned: {reason}",
    noRegional: "every step computed the whole image",
    run: "{run} of {runs}",
    time: "about {share} % of the time",
    steps: "{steps} steps instead of {total}",
    same: "nearly as with 250 steps", near: "very close to 250 steps", close: "close to 250 steps", similar: "similar to 250 steps",
    few: "no gain with so few steps: the run is the same as without RAS",
    custom: "custom: the advanced inputs apply",
    plan: "the connected plan applies",
    source: "Estimated from the plan for {speed}{closeness}. RAS Calibrate measures your own model.",
    measured: "measured on your model",
    measuredSource: "Estimated from the plan for {speed} that RAS Calibrate measured on this model at this image size. Closeness of its final latent to that of a run with many steps: {dB} dB.",
    closeness: "; PSNR on the family's demo model: {dB} dB against the converged image",
    without: "without RAS", with: "with RAS", fewer: "fewer steps ({steps})",
    faster: "{speed}× faster · closeness {ras} (fewer steps: {fewer})",
    about: "about {speed}× faster (computed; the computer was busy) · closeness {ras} (fewer steps: {fewer})",
    ssim: "Closeness to the image without RAS: SSIM, 1 for the same image.",
    compare: "Image to the right of the line",
  },
  de: {
    step: "Schritt {step} von {total} · {kind} · {share} % der Token",
    caption: "Schritt {step}/{total} · {kind} · {share} %",
    regional: "regional", dense: "vollständig", reset: "Fehler-Reset",
    legend: "hell: berechnet · dunkel: wiederverwendet",
    label: "{text}. Helle Regionen werden berechnet, dunkle wiederverwendet.",
    slider: "Schritt des letzten Laufs",
    tokens: "{share} % aller Token",
    speed: "{speed}× so schnell",
    busy: "Rechner ausgelastet: Tempo unklar",
    nothing: "Nicht beschleunigt: {reason}",
    less: "Weniger beschleunigt als geplant: {reason}",
    noRegional: "jeder Schritt hat das ganze Bild berechnet",
    run: "{run} von {runs}",
    time: "etwa {share} % der Zeit",
    steps: "{steps} Schritte statt {total}",
    same: "fast wie mit 250 Schritten", near: "sehr nah an 250 Schritten", close: "nah an 250 Schritten", similar: "ähnlich wie mit 250 Schritten",
    few: "kein Gewinn bei so wenigen Schritten: Der Lauf ist der gleiche wie ohne RAS",
    custom: "custom: Es gelten die erweiterten Eingänge",
    plan: "Es gilt der verbundene Plan",
    source: "Geschätzt aus dem Plan für {speed}{closeness}. „RAS kalibrieren“ misst Ihr eigenes Modell.",
    measured: "an Ihrem Modell gemessen",
    measuredSource: "Geschätzt aus dem Plan für {speed}, den „RAS kalibrieren“ an diesem Modell bei dieser Bildgröße gemessen hat. Nähe des fertigen Latents zu dem eines Laufs mit vielen Schritten: {dB} dB.",
    closeness: "; PSNR beim Demo-Modell der Familie: {dB} dB gegenüber dem konvergierten Bild",
    without: "ohne RAS", with: "mit RAS", fewer: "weniger Schritte ({steps})",
    faster: "{speed}× so schnell · Nähe {ras} (weniger Schritte: {fewer})",
    about: "etwa {speed}× so schnell (berechnet; der Rechner war ausgelastet) · Nähe {ras} (weniger Schritte: {fewer})",
    ssim: "Nähe zum Bild ohne RAS: SSIM, 1 bei gleichem Bild.",
    compare: "Bild rechts der Linie",
  },
  ja: {
    step: "ステップ {step} / {total} · {kind} · トークンの {share} %",
    caption: "ステップ {step}/{total} · {kind} · {share} %",
    regional: "部分計算", dense: "全計算", reset: "誤差リセット",
    legend: "明: 計算 · 暗: 再利用",
    label: "{text}。明るい領域は計算され、暗い領域は再利用されます。",
    slider: "前回の実行のステップ",
    tokens: "全トークンの {share} %",
    speed: "速度 {speed} 倍",
    busy: "ほかの処理中のため速度は不明",
    nothing: "高速化されませんでした: {reason}",
    less: "予定より少ない高速化: {reason}",
    noRegional: "すべてのステップが画像全体を計算しました",
    run: "{run} / {runs}",
    time: "時間は約 {share} %",
    steps: "{total} ステップの代わりに {steps} ステップ",
    same: "250 ステップの画像とほぼ同じ", near: "250 ステップの画像に非常に近い", close: "250 ステップの画像に近い", similar: "250 ステップの画像に似た結果",
    few: "ステップが少ないため高速化されず、RAS なしと同じ実行になります",
    custom: "custom: 詳細入力で決まります",
    plan: "接続したプランで決まります",
    source: "{speed} のプランからの推定{closeness}。お使いのモデルは RAS キャリブレーションで測定できます。",
    measured: "お使いのモデルで測定済み",
    measuredSource: "RAS キャリブレーションがこのモデルとこの画像サイズで測定した {speed} のプランからの推定。最終 latent の、多ステップの実行の結果への近さは {dB} dB。",
    closeness: "（同系列のデモモデルで、収束した画像に対する PSNR は {dB} dB）",
    without: "RAS なし", with: "RAS あり", fewer: "少ないステップ（{steps}）",
    faster: "速度 {speed} 倍 · 近さ {ras}（少ないステップ: {fewer}）",
    about: "速度 約 {speed} 倍（計算値。コンピューターがほかの処理中でした）· 近さ {ras}（少ないステップ: {fewer}）",
    ssim: "RAS なしの画像への近さ: SSIM。同じ画像なら 1。",
    compare: "線の右側に表示するもの",
  },
  zh: {
    step: "第 {step} 步，共 {total} 步 · {kind} · {share} % 的 token",
    caption: "第 {step}/{total} 步 · {kind} · {share} %",
    regional: "局部", dense: "完整", reset: "误差重置",
    legend: "亮：计算 · 暗：复用",
    label: "{text}。亮的区域被计算，暗的区域被复用。",
    slider: "上次运行的步",
    tokens: "全部 token 的 {share} %",
    speed: "速度 {speed} 倍",
    busy: "计算机繁忙：速度不明",
    nothing: "未加速：{reason}",
    less: "加速少于方案：{reason}",
    noRegional: "每一步都计算了整个图像",
    run: "{run} / {runs}",
    time: "约 {share} % 的时间",
    steps: "{steps} 步代替 {total} 步",
    same: "与 250 步的图像几乎相同", near: "非常接近 250 步的图像", close: "接近 250 步的图像", similar: "与 250 步的图像相似",
    few: "步数太少，无法加速：运行与无 RAS 时相同",
    custom: "custom：由高级输入决定",
    plan: "由所连接的方案决定",
    source: "根据 {speed} 的方案估计{closeness}。“RAS 校准”可测量你自己的模型。",
    measured: "已在你的模型上测量",
    measuredSource: "根据“RAS 校准”在此模型和此图像尺寸上测得的 {speed} 方案估计。其最终 latent 与多步运行结果的接近度为 {dB} dB。",
    closeness: "（在该系列的演示模型上，相对于收敛图像的 PSNR 为 {dB} dB）",
    without: "无 RAS", with: "有 RAS", fewer: "更少步数（{steps}）",
    faster: "速度 {speed} 倍 · 接近度 {ras}（更少步数：{fewer}）",
    about: "速度约 {speed} 倍（计算值；计算机正忙）· 接近度 {ras}（更少步数：{fewer}）",
    ssim: "与无 RAS 图像的接近度：SSIM，相同图像为 1。",
    compare: "线右侧显示的内容",
  },
};

const DECIMAL_COMMA = new Set(["de"]);
const DECIMAL = /^\d+\.\d+$/; // a number, but not a choice of an input, such as 1.5x

/** The text of a key in the language of the interface, with its values filled in. */
export function say(key, values = {}) {
  const text = (WORDS[language()] ?? WORDS.en)[key];
  return text.replace(/\{(\w+)\}/g, (_, name) => written(String(values[name] ?? "")));
}

/** A value as the language writes it. */
function written(value) {
  return DECIMAL_COMMA.has(language()) && DECIMAL.test(value) ? value.replace(".", ",") : value;
}

function language() {
  return String(app.extensionManager?.setting?.get("Comfy.Locale") ?? "en").split("-")[0];
}
