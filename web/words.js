// The texts of the hint, the live view and RAS Compare, in the pack's languages. They use the terms of locales/.

import { app } from "../../scripts/app.js";

const WORDS = {
  en: {
    step: "Step {step} of {total} · {kind} · {share} % of tokens",
    caption: "Step {step}/{total} · {kind} · {share} %",
    regional: "regional", dense: "dense", reset: "dense again",
    terms: "Dense steps compute the whole image, regional ones a part of it. A dense step after regional ones (“dense again”) ends the errors of skipped regions. Tokens are the squares that the model computes, of 16 × 16 pixels in most models.",
    legend: "bright: computed · dark: reused",
    noPreview: "for an image, choose a live preview method in ComfyUI's settings",
    label: "{text}. Bright regions are computed, dark ones reused.",
    slider: "Step of the last run",
    tokens: "{share} % of all tokens",
    speed: "{speed}× speed",
    busy: "computer busy: speed unclear",
    nothing: "Not accelerated: {reason}",
    less: "Less than planned: {reason}",
    noRegional: "every step computed the whole image",
    run: "{run} of {runs}: {name}",
    estimated: "{run}: {text}",
    time: "about {share} % of the time",
    steps: "{steps} steps instead of {total}",
    keepsSteps: "all {total} steps; a closer image with euler or dpmpp_2m",
    same: "almost the image of 250 steps", near: "close to the image of 250 steps", close: "similar to the image of 250 steps", similar: "roughly the image of 250 steps",
    few: "no gain with so few steps: the run is the same as without RAS",
    noGain: "no gain with so few steps",
    replaced: "no effect: {node} has its own settings",
    none: "no gain", ofInpainting: "{text} (inpainting)",
    custom: "custom: the advanced inputs apply",
    customAllDense: "custom: no gain, every step computes the whole image",
    customInside: "custom: settings inside the node", customNoGain: "custom: no gain",
    plan: "the connected plan applies",
    source: "Estimated from the plan for {speed}. {closeness}RAS Calibrate measures your own model.",
    measured: "measured on your model",
    measuredSource: "Estimated from the plan for {speed} that RAS Calibrate measured on this model at this image size. Closeness of its final latent to that of a run with many steps: {dB} dB.",
    measuredTime: "Estimated from the plan for {speed} that RAS Calibrate measured on this model at this image size.",
    closeness: "Beyond 250 steps, an image hardly changes, so the image of 250 steps is the reference; on the family's demo model, the result had a PSNR of {dB} dB against it. ",
    without: "without RAS", with: "with RAS", fewer: "fewer steps ({steps})",
    faster: "{speed}× faster · similarity to the image without RAS: {ras} (fewer steps: {fewer})",
    slower: "slower than without RAS ({speed}× the speed) · similarity to the image without RAS: {ras} (fewer steps: {fewer})",
    about: "about {speed}× faster (computed; the computer was busy) · similarity to the image without RAS: {ras} (fewer steps: {fewer})",
    ssim: "Similarity to the image without RAS: SSIM, 1 for the same image.",
    timed: "{name} · {seconds} s", sampling: "Usual time of sampling: without steps that other programs slowed down, loading the model, and decoding the image",
    inpainted: "{text} · inpainting: fewer steps, all dense",
    compare: "Image to the right of the line",
  },
  de: {
    step: "Schritt {step} von {total} · {kind} · {share} % der Token",
    caption: "Schritt {step}/{total} · {kind} · {share} %",
    regional: "regional", dense: "vollständig", reset: "wieder vollständig",
    terms: "Vollständige Schritte berechnen das ganze Bild, regionale einen Teil davon. Ein vollständiger Schritt nach regionalen (wieder vollständig) beseitigt die Fehler ausgelassener Regionen. Token sind die Quadrate, die das Modell berechnet, bei den meisten Modellen 16 × 16 Pixel groß.",
    legend: "hell: berechnet · dunkel: wiederverwendet",
    noPreview: "um ein Bild zu sehen, in den ComfyUI-Einstellungen eine Methode für die Live-Vorschau wählen",
    label: "{text}. Helle Regionen werden berechnet, dunkle wiederverwendet.",
    slider: "Schritt des letzten Laufs",
    tokens: "{share} % aller Token",
    speed: "{speed}× so schnell",
    busy: "Rechner ausgelastet: Tempo unklar",
    nothing: "Nicht beschleunigt: {reason}",
    less: "Weniger beschleunigt als geplant: {reason}",
    noRegional: "jeder Schritt hat das ganze Bild berechnet",
    run: "{run} von {runs}: {name}",
    estimated: "{run}: {text}",
    time: "etwa {share} % der Zeit",
    steps: "{steps} Schritte statt {total}",
    keepsSteps: "alle {total} Schritte; weniger Abweichung mit euler oder dpmpp_2m",
    same: "fast das Bild mit 250 Schritten", near: "nah am Bild mit 250 Schritten", close: "ähnlich dem Bild mit 250 Schritten", similar: "ungefähr wie das Bild mit 250 Schritten",
    few: "kein Gewinn bei so wenigen Schritten: Der Lauf ist der gleiche wie ohne RAS",
    noGain: "kein Gewinn bei so wenigen Schritten",
    replaced: "ohne Wirkung: {node} hat eigene Einstellungen",
    none: "kein Gewinn", ofInpainting: "{text} (Inpainting)",
    custom: "custom: Es gelten die erweiterten Eingänge",
    customAllDense: "custom: kein Gewinn, jeder Schritt berechnet das ganze Bild",
    customInside: "custom: Einstellungen im Node", customNoGain: "custom: kein Gewinn",
    plan: "Es gilt der verbundene Plan",
    source: "Geschätzt aus dem Plan für {speed}. {closeness}„RAS kalibrieren“ misst Ihr eigenes Modell.",
    measured: "an Ihrem Modell gemessen",
    measuredSource: "Geschätzt aus dem Plan für {speed}, den „RAS kalibrieren“ an diesem Modell bei dieser Bildgröße gemessen hat. Nähe des fertigen Latents zu dem eines Laufs mit vielen Schritten: {dB} dB.",
    measuredTime: "Geschätzt aus dem Plan für {speed}, den „RAS kalibrieren“ an diesem Modell bei dieser Bildgröße gemessen hat.",
    closeness: "Mehr als 250 Schritte ändern ein Bild kaum noch, daher ist das Bild mit 250 Schritten der Maßstab; beim Demo-Modell der Familie betrug die PSNR gegenüber diesem Bild {dB} dB. ",
    without: "ohne RAS", with: "mit RAS", fewer: "weniger Schritte ({steps})",
    faster: "{speed}× so schnell · Ähnlichkeit mit dem Bild ohne RAS: {ras} (weniger Schritte: {fewer})",
    slower: "langsamer als ohne RAS ({speed}× so schnell) · Ähnlichkeit mit dem Bild ohne RAS: {ras} (weniger Schritte: {fewer})",
    about: "etwa {speed}× so schnell (berechnet; der Rechner war ausgelastet) · Ähnlichkeit mit dem Bild ohne RAS: {ras} (weniger Schritte: {fewer})",
    ssim: "Ähnlichkeit mit dem Bild ohne RAS: SSIM, 1 bei gleichem Bild.",
    timed: "{name} · {seconds} s", sampling: "Übliche Dauer des Samplings: ohne Verzögerungen durch andere Programme, ohne Laden des Modells und Dekodieren des Bildes",
    inpainted: "{text} · Inpainting: weniger Schritte, alle vollständig",
    compare: "Bild rechts der Linie",
  },
  ja: {
    step: "ステップ {step} / {total} · {kind} · トークンの {share}%",
    caption: "ステップ {step}/{total} · {kind} · {share}%",
    regional: "部分計算", dense: "全計算", reset: "再び全計算",
    terms: "「全計算」のステップは画像全体を、「部分計算」のステップはその一部を計算します。部分計算の後に入る全計算のステップ（「再び全計算」）は、計算を省いた領域の誤差をなくします。トークンはモデルが計算する正方形で、多くのモデルでは 16 × 16 ピクセルです。",
    legend: "明: 計算 · 暗: 再利用",
    noPreview: "画像を表示するには、ComfyUI の設定「ライブプレビューメソッド」で方式を選んでください",
    label: "{text}。明るい領域は計算され、暗い領域は再利用されます。",
    slider: "前回の実行のステップ",
    tokens: "全トークンの {share}%",
    speed: "速度 {speed} 倍",
    busy: "ほかの処理のため速度は不明",
    nothing: "高速化なし: {reason}",
    less: "予定ほど高速化されませんでした: {reason}",
    noRegional: "すべてのステップで画像全体を計算しました",
    run: "実行 {run}/{runs}: {name}",
    estimated: "{run}: {text}",
    time: "所要時間は通常の約 {share}%",
    steps: "{total} → {steps} ステップ",
    keepsSteps: "{total} ステップのまま。euler か dpmpp_2m なら画像がさらに近づきます",
    same: "250 ステップの画像とほぼ同じ", near: "250 ステップの画像に近い", close: "250 ステップの画像に似ている", similar: "250 ステップの画像におおまかに似ている",
    few: "ステップ数が少ないため高速化されず、RAS なしと同じ実行になります",
    noGain: "ステップ数が少なく高速化なし",
    replaced: "効果なし: {node} は独自の設定を使います",
    none: "高速化なし", ofInpainting: "{text}（インペイント）",
    custom: "custom: 詳細入力で決まります",
    customAllDense: "custom: すべてのステップで画像全体を計算するため、高速化されません",
    customInside: "custom: ノードの中で設定", customNoGain: "custom: 高速化なし",
    plan: "接続したプランで決まります",
    source: "{speed} のプランによる推定。{closeness}お使いのモデルは RAS キャリブレーションで測定できます。",
    measured: "お使いのモデルで測定済み",
    measuredSource: "RAS キャリブレーションがこのモデルとこの画像サイズで測定した {speed} のプランによる推定。ステップ数の多い実行と比べた、最終の潜在画像の近さは {dB} dB。",
    measuredTime: "RAS キャリブレーションがこのモデルとこの画像サイズで測定した {speed} のプランによる推定。",
    closeness: "250 ステップより増やしても画像はほとんど変わらないため、250 ステップの画像を基準とします。同じ系列のデモモデルでは、基準の画像に対する結果の PSNR は {dB} dB でした。",
    without: "RAS なし", with: "RAS あり", fewer: "少ないステップ（{steps}）",
    faster: "速度 {speed} 倍 · RAS なしの画像との類似度 {ras}（少ないステップ: {fewer}）",
    slower: "RAS なしより遅い（速度 {speed} 倍） · RAS なしの画像との類似度 {ras}（少ないステップ: {fewer}）",
    about: "速度 約 {speed} 倍（ほかの処理があったため計算値） · RAS なしの画像との類似度 {ras}（少ないステップ: {fewer}）",
    ssim: "RAS なしの画像との類似度: SSIM。同じ画像なら 1。",
    timed: "{name} · {seconds} 秒", sampling: "サンプリングの通常の時間（ほかの処理による遅れ、モデルの読み込み、画像のデコードを除く）",
    inpainted: "{text} · インペイント: ステップを減らし、すべて全計算",
    compare: "線の右側に表示する画像",
  },
  zh: {
    step: "第 {step} 步，共 {total} 步 · {kind} · {share}% 的 token",
    caption: "第 {step}/{total} 步 · {kind} · {share}%",
    regional: "局部", dense: "完整", reset: "再次完整",
    terms: "完整步计算整幅图像，局部步只计算其中一部分。局部步之后的完整步（“再次完整”）消除被跳过区域的误差。token 是模型计算的方块，在大多数模型中为 16 × 16 像素。",
    legend: "亮：计算 · 暗：复用",
    noPreview: "要显示图像，请在 ComfyUI 设置的“实时预览”中选择一种方式",
    label: "{text}。亮处是计算的区域，暗处是复用的区域。",
    slider: "上次运行的第几步",
    tokens: "全部 token 的 {share}%",
    speed: "{speed} 倍速",
    busy: "计算机繁忙，速度不明",
    nothing: "未加速：{reason}",
    less: "加速未达预期：{reason}",
    noRegional: "每一步都计算了整幅图像",
    run: "第 {run}/{runs} 次运行：{name}",
    estimated: "{run}：{text}",
    time: "用时约为原来的 {share}%",
    steps: "以 {steps} 步代替 {total} 步",
    keepsSteps: "仍为 {total} 步；用 euler 或 dpmpp_2m 可使图像更接近",
    same: "与 250 步的图像几乎相同", near: "接近 250 步的图像", close: "与 250 步的图像相似", similar: "与 250 步的图像大致相似",
    few: "步数太少，无法加速：运行与不使用 RAS 时相同",
    noGain: "步数太少，无法加速",
    replaced: "无效：{node} 使用自己的设置",
    none: "无法加速", ofInpainting: "{text}（局部重绘）",
    custom: "custom：由高级输入决定",
    customAllDense: "custom：无法加速，每一步都计算整幅图像",
    customInside: "custom：在节点内设置", customNoGain: "custom：无法加速",
    plan: "由所连接的方案决定",
    source: "根据 {speed} 的方案估计。{closeness}“RAS 校准”可测量您自己的模型。",
    measured: "已在您的模型上实测",
    measuredSource: "根据“RAS 校准”在此模型和此图像尺寸上测得的 {speed} 方案估计。其最终 Latent 与多步运行结果的接近度为 {dB} dB。",
    measuredTime: "根据“RAS 校准”在此模型和此图像尺寸上测得的 {speed} 方案估计。",
    closeness: "超过 250 步后图像几乎不再变化，因此以 250 步的图像为基准；在该系列的演示模型上，所得图像与它的接近度为 {dB} dB（PSNR）。",
    without: "无 RAS", with: "有 RAS", fewer: "较少步数（{steps} 步）",
    faster: "{speed} 倍速 · 与不使用 RAS 的图像的相似度 {ras}（较少步数：{fewer}）",
    slower: "比不使用 RAS 更慢（{speed} 倍速）· 与不使用 RAS 的图像的相似度 {ras}（较少步数：{fewer}）",
    about: "约 {speed} 倍速（推算值；计算机当时繁忙）· 与不使用 RAS 的图像的相似度 {ras}（较少步数：{fewer}）",
    ssim: "与不使用 RAS 的图像的相似度（SSIM）；图像相同时为 1。",
    timed: "{name} · {seconds} 秒", sampling: "通常的采样用时，不含其他程序造成的延迟、加载模型和解码图像",
    inpainted: "{text} · 局部重绘：步数减少，每步均为完整",
    compare: "分隔线右侧的图像",
  },
};

const DECIMAL_COMMA = new Set(["de"]);
const UNIT = / %/g; // kept on the line of its number, by a space that does not break
const DECIMAL = /^\d+\.\d+( [GM]iB)?$/; // a number, but not a choice of an input, such as 1.5x

/** The text of a key in the language of the interface, with its values filled in. */
export function say(key, values = {}) {
  return fill(inLanguage(WORDS)[key], values);
}

/** A share as a whole number of percent, as ras_core/method/shares.py rounds it. */
export function percent(share) {
  return Math.round(Number((100 * share).toFixed(2)));
}

/** A text with its values filled in, as the language of the interface writes them. */
export function fill(text, values) {
  return text.replace(UNIT, "\u00a0%").replace(/\{(\w+)\}/g, (_, name) => written(String(values[name] ?? "")));
}

/** Of values by language: that of the interface's language, or the English one. */
export function inLanguage(values) {
  return values[language()] ?? values.en;
}

/** A value as the language writes it. */
function written(value) {
  return DECIMAL_COMMA.has(language()) && DECIMAL.test(value) ? value.replace(".", ",") : value;
}

function language() {
  return String(app.extensionManager?.setting?.get("Comfy.Locale") ?? "en").split("-")[0];
}
