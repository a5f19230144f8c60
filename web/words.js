// The texts of the hint and of the live view, in the languages of the pack. The words are those of locales/.

import { app } from "../../scripts/app.js";

const WORDS = {
  en: {
    step: "Step {step} of {total} · {kind} · {share} % of tokens",
    regional: "regional", dense: "dense", reset: "error reset",
    legend: "bright: computed · dark: reused",
    label: "{text}. Bright regions are computed, dark ones reused.",
    slider: "Step of the last run",
    tokens: "{share} % of all tokens",
    speed: "{speed}× speed",
    busy: "speed not measurable: the computer was busy",
    nothing: "Not accelerated: {reason}",
    less: "Less than planned: {reason}",
    noRegional: "every step computed the whole image",
    run: "{run} of {runs}",
    time: "about {share} % of the time",
    steps: "{steps} steps instead of {total}",
    same: "nearly the same image", near: "very close image", close: "close image", similar: "similar image",
    custom: "custom: the advanced inputs decide",
    plan: "the connected plan decides",
    source: "Estimated from the plan for {speed}{closeness}. RAS Calibrate measures your own model.",
    closeness: "; {dB} dB to the converged image on the demo model of the family",
  },
  de: {
    step: "Schritt {step} von {total} · {kind} · {share} % der Token",
    regional: "regional", dense: "vollständig", reset: "Fehler-Reset",
    legend: "hell: berechnet · dunkel: wiederverwendet",
    label: "{text}. Helle Regionen werden berechnet, dunkle wiederverwendet.",
    slider: "Schritt des letzten Laufs",
    tokens: "{share} % aller Token",
    speed: "{speed}× so schnell",
    busy: "Tempo nicht messbar: der Rechner war beschäftigt",
    nothing: "Nicht beschleunigt: {reason}",
    less: "Weniger als geplant: {reason}",
    noRegional: "jeder Schritt hat das ganze Bild berechnet",
    run: "{run} von {runs}",
    time: "etwa {share} % der Zeit",
    steps: "{steps} Schritte statt {total}",
    same: "fast dasselbe Bild", near: "sehr ähnliches Bild", close: "ähnliches Bild", similar: "verwandtes Bild",
    custom: "custom: die erweiterten Eingänge bestimmen",
    plan: "der verbundene Plan bestimmt",
    source: "Geschätzt aus dem Plan für {speed}{closeness}. „RAS kalibrieren“ misst dein eigenes Modell.",
    closeness: "; {dB} dB zum auskonvergierten Bild beim Demo-Modell der Familie",
  },
  ja: {
    step: "ステップ {step} / {total} · {kind} · トークンの {share} %",
    regional: "部分計算", dense: "全計算", reset: "誤差リセット",
    legend: "明: 計算 · 暗: 再利用",
    label: "{text}。明るい領域は計算され、暗い領域は再利用されます。",
    slider: "前回の実行のステップ",
    tokens: "全トークンの {share} %",
    speed: "速度 {speed} 倍",
    busy: "速度は測定できません: コンピューターがほかの処理中でした",
    nothing: "高速化されませんでした: {reason}",
    less: "予定より少ない高速化: {reason}",
    noRegional: "すべてのステップが画像全体を計算しました",
    run: "{run} / {runs}",
    time: "時間は約 {share} %",
    steps: "{total} ステップの代わりに {steps} ステップ",
    same: "ほぼ同じ画像", near: "非常に近い画像", close: "近い画像", similar: "似た画像",
    custom: "custom: 詳細入力で決まります",
    plan: "接続したプランで決まります",
    source: "{speed} のプランからの推定{closeness}。お使いのモデルは RAS キャリブレーションで測定できます。",
    closeness: "（同系列のデモモデルで、収束した画像に対して {dB} dB）",
  },
  zh: {
    step: "第 {step} 步，共 {total} 步 · {kind} · {share} % 的 token",
    regional: "局部", dense: "完整", reset: "误差重置",
    legend: "亮：计算 · 暗：复用",
    label: "{text}。亮的区域被计算，暗的区域被复用。",
    slider: "上次运行的步",
    tokens: "全部 token 的 {share} %",
    speed: "速度 {speed} 倍",
    busy: "无法测量速度：计算机正忙",
    nothing: "未加速：{reason}",
    less: "加速少于方案：{reason}",
    noRegional: "每一步都计算了整个图像",
    run: "{run} / {runs}",
    time: "约 {share} % 的时间",
    steps: "{steps} 步代替 {total} 步",
    same: "几乎相同的图像", near: "非常接近的图像", close: "接近的图像", similar: "相似的图像",
    custom: "custom：由高级输入决定",
    plan: "由所连接的方案决定",
    source: "根据 {speed} 的方案估计{closeness}。“RAS 校准”可测量你自己的模型。",
    closeness: "（在该系列的演示模型上，与收敛图像相差 {dB} dB）",
  },
};

/** The text of a key in the language of the interface, with its values filled in. */
export function say(key, values = {}) {
  const text = (WORDS[language()] ?? WORDS.en)[key];
  return text.replace(/\{(\w+)\}/g, (_, name) => String(values[name] ?? ""));
}

function language() {
  return String(app.extensionManager?.setting?.get("Comfy.Locale") ?? "en").split("-")[0];
}
